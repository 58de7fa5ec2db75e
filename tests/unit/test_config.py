"""Configs: how file, preset, policy and overrides are merged, and what the shipped files hold."""

import subprocess
import sys

import pytest
import yaml
from pydantic import ValidationError

from jano_dist import UserError, load_config
from jano_dist.config import FullPolicyConfig, JanoPolicyConfig, config_names, preset_names
from jano_dist.geometry import quick_geometry

FILE = """\
model: {name: some/model}
video: {frames: 17, height: 128, width: 96}
sampling: {steps: 40, guidance: 4.0}
policy: {name: jano, warmup: 9, static_threshold: 0.2, moderate_threshold: 0.5, static_interval: 7}
preset: middle
presets:
  middle: {static_threshold: 0.25, static_interval: 8}
  wild: {static_threshold: 0.45, moderate_threshold: 0.7, moderate_interval: 9}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(FILE)
    return path


class TestMerge:
    def test_file_over_defaults(self, file):
        config = load_config(file)
        assert config.model.name == "some/model"
        assert (config.video.frames, config.video.height, config.video.width) == (17, 128, 96)
        assert (config.sampling.steps, config.sampling.guidance) == (40, 4.0)
        assert config.policy.warmup == 9
        assert config.policy.cooldown == 4  # nobody said otherwise

    def test_preset_over_file(self, file):
        policy = load_config(file).policy
        assert (policy.static_threshold, policy.static_interval) == (0.25, 8)
        assert (policy.moderate_threshold, policy.moderate_interval) == (0.5, 4)  # file, default
        assert load_config(file).preset == "middle"

    def test_another_preset_than_the_files_own(self, file):
        config = load_config(file, preset="wild")
        assert config.preset == "wild"
        assert (config.policy.static_threshold, config.policy.static_interval) == (0.45, 7)
        assert (config.policy.moderate_threshold, config.policy.moderate_interval) == (0.7, 9)

    def test_overrides_over_preset(self, file):
        config = load_config(file, preset="wild", overrides=["policy.static_threshold=0.3", "video.frames=5"])
        assert config.policy.static_threshold == 0.3
        assert config.policy.moderate_threshold == 0.7
        assert config.video.frames == 5
        assert config.video.height == 128

    def test_the_last_override_wins(self, file):
        assert load_config(file, overrides=["video.frames=5", "video.frames=9"]).video.frames == 9

    def test_overrides_as_a_mapping(self, file):
        config = load_config(file, overrides={"video.frames": 9, "policy.block": (1, 2, 2)})
        assert config.video.frames == 9
        assert config.policy.block == (1, 2, 2)

    @pytest.mark.parametrize(
        ("text", "section", "key", "value"),
        [
            ("policy.block=[1, 2, 3]", "policy", "block", (1, 2, 3)),
            ("sampling.shift=null", "sampling", "shift", None),
            ("sampling.shift=2", "sampling", "shift", 2.0),
            ("sampling.negative_prompt=a=b", "sampling", "negative_prompt", "a=b"),
            ("sampling.negative_prompt='5'", "sampling", "negative_prompt", "5"),
            (" video.fps =12", "video", "fps", 12),
        ],
    )
    def test_values_are_yaml(self, file, text, section, key, value):
        assert getattr(getattr(load_config(file, overrides=[text]), section), key) == value

    def test_an_override_in_a_section_the_file_lacks(self, file):
        config = load_config(file, overrides=["runtime.device=cpu", "policy.enhance.distance=2"])
        assert config.runtime.device == "cpu"
        assert (config.policy.enhance.distance, config.policy.enhance.strength) == (2, 0.8)

    def test_loading_leaves_nothing_behind(self, file):
        before = load_config(file)
        load_config(file, preset="wild", policy="full", overrides=["video.frames=5"])
        assert load_config(file) == before


class TestPolicy:
    def test_full_drops_the_settings_of_jano(self, file):
        config = load_config(file, policy="full")
        assert config.policy == FullPolicyConfig()
        assert config.preset is None  # none was merged

    def test_naming_the_files_policy_changes_nothing(self, file):
        assert load_config(file, policy="jano") == load_config(file)

    def test_back_to_jano_from_a_full_file(self, tmp_path):
        path = tmp_path / "full.yaml"
        path.write_text(FILE.replace("name: jano, warmup: 9, static_threshold: 0.2", "name: full").partition(
            ", moderate_threshold"
        )[0] + "}\n")  # fmt: skip
        assert load_config(path).policy == FullPolicyConfig()
        assert load_config(path, policy="jano").policy == JanoPolicyConfig()

    @pytest.mark.parametrize("overrides", [["policy.name=full"], {"policy.name": "full"}])
    def test_set_does_the_same_as_the_option(self, file, overrides):
        assert load_config(file, overrides=overrides) == load_config(file, policy="full")

    def test_set_of_a_preset_merges_it(self, file):
        assert load_config(file, overrides=["preset=wild"]) == load_config(file, preset="wild")

    def test_an_unknown_preset_is_an_error_under_any_policy(self, file):
        with pytest.raises(UserError, match="no preset 'wilder'"):
            load_config(file, policy="full", preset="wilder")

    def test_no_policy_section_is_jano(self, tmp_path):
        path = tmp_path / "short.yaml"
        path.write_text("{model: {name: a}, video: {frames: 1, height: 16, width: 16}}")
        assert load_config(path).policy == JanoPolicyConfig()


class TestFrozen:
    @pytest.mark.parametrize(
        ("section", "key"),
        [("video", "frames"), ("policy", "warmup"), ("policy.enhance", "strength"), ("", "preset")],
    )
    def test_nothing_can_be_changed(self, file, section, key):
        node = load_config(file)
        for name in filter(None, section.split(".")):
            node = getattr(node, name)
        with pytest.raises(ValidationError, match="frozen"):
            setattr(node, key, getattr(node, key))


class TestUnknownKeys:
    @pytest.mark.parametrize(
        ("key", "nearest"),
        [
            ("sampl", "sampling"),
            ("sampling.step", "sampling.steps"),
            ("video.hight", "video.height"),
            ("model.dtyp", "model.dtype"),
            ("policy.treshold", "policy.static_threshold"),
            ("policy.warm_up", "policy.warmup"),
            ("policy.enhance.dist", "policy.enhance.distance"),
            ("runtime.devise", "runtime.device"),
            # The right key in the wrong place.
            ("steps", "sampling.steps"),
            ("video.steps", "sampling.steps"),
            ("strength", "policy.enhance.strength"),
            ("policy.strength", "policy.enhance.strength"),
        ],
    )
    def test_names_the_nearest(self, file, key, nearest):
        with pytest.raises(UserError) as error:
            load_config(file, overrides=[f"{key}=1"])
        assert f"unknown key '{key}' (did you mean '{nearest}'?)" in str(error.value)

    @pytest.mark.parametrize("key", ["xyz", "policy.xyz", "policy.enhance.xyz", ".", "full", "policy.full"])
    def test_names_none_where_none_is_near(self, file, key):
        with pytest.raises(UserError, match="unknown key") as error:
            load_config(file, overrides=[f"{key}=1"])
        assert "did you mean" not in str(error.value)

    def test_of_the_full_policy(self, file):
        with pytest.raises(UserError, match=r"unknown key 'policy\.warmup': correct or remove it"):
            load_config(file, policy="full", overrides=["policy.warmup=3"])


class TestShipped:
    def test_names(self):
        assert "wan-tiny" in config_names()

    def test_presets(self):
        one = {"sd3-1024": ["balanced"], "flux.1-schnell-1024": []}
        for name in config_names():
            assert preset_names(name) == one.get(name, ["conservative", "balanced", "fast"])

    @pytest.mark.parametrize(
        ("name", "preset"), [(name, preset) for name in config_names() for preset in preset_names(name)]
    )
    def test_loads_with_every_preset(self, name, preset):
        config = load_config(name, preset=preset)
        assert config.preset == preset
        assert load_config(name).preset == "balanced"
        assert config.policy.name == "jano"
        assert 0 < config.policy.static_threshold <= config.policy.moderate_threshold < 1
        assert config.policy.moderate_interval <= config.policy.static_interval
        assert config.policy.warmup + config.policy.cooldown < config.sampling.steps
        geometry, video = quick_geometry(config.model.name), config.video
        assert geometry.latent_shape(video.frames, video.height, video.width)

    @pytest.mark.parametrize("name", config_names())
    def test_loads_with_the_full_policy(self, name):
        assert load_config(name, policy="full").policy == FullPolicyConfig()

    @pytest.mark.parametrize("name", config_names())
    def test_survives_a_round_trip(self, name):
        """What run.json records is a config again."""
        config = load_config(name)
        assert type(config).model_validate(yaml.safe_load(config.model_dump_json())) == config

    # The published parameter rows: static threshold and interval, moderate threshold and interval.
    PUBLISHED = {  # noqa: RUF012
        "wan2.1-1.3b": {
            "conservative": (0.1, 3, 0.3, 2),
            "balanced": (0.15, 6, 0.4, 4),
            "fast": (0.4, 6, 0.6, 4),
        },
        "wan2.1-14b": {
            "conservative": (0.1, 6, 0.3, 3),
            "balanced": (0.15, 6, 0.4, 4),
            "fast": (0.4, 6, 0.6, 4),
        },
    }

    @pytest.mark.parametrize("name", [name for name in config_names() if name.startswith("wan2.1-")])
    @pytest.mark.parametrize("preset", ["conservative", "balanced", "fast"])
    def test_presets_are_the_published_rows(self, name, preset):
        policy, plain = load_config(name, preset=preset).policy, name.replace("i2v-", "")
        (rows,) = (rows for model, rows in self.PUBLISHED.items() if plain.startswith(model + "-"))
        assert (
            policy.static_threshold,
            policy.static_interval,
            policy.moderate_threshold,
            policy.moderate_interval,
        ) == rows[preset]


def test_loading_a_config_does_not_import_torch():
    code = "import sys, jano_dist; jano_dist.load_config('wan-tiny'); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
