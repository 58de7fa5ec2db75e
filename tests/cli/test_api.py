"""The Python API on bad input: the sentence of the command line as `UserError`, before anything is loaded."""

import json

import numpy as np
import pytest

from jano_dist import Engine, UserError, load_config
from tests.cli.sentence import BALL


@pytest.fixture(scope="module")
def engine(small):
    return Engine(load_config(small, policy="full", overrides={"sampling.steps": 1}))


@pytest.fixture
def idle(engine, monkeypatch):
    """An engine that fails if it begins to work."""

    def fail(*arguments):
        raise AssertionError("it has begun")

    for name in ("notes", "encode", "noise"):
        monkeypatch.setattr(engine.model, name, fail)
    return engine


class TestLoadConfig:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"name": None}, "loaded by its name or path, not by None"),
            ({"name": 5}, "loaded by its name or path, not by 5"),
            ({"name": b"wan-tiny"}, "loaded by its name or path, not by b'wan-tiny'"),
            ({"name": ""}, "the config has no name: choose one of"),
            ({"preset": 5}, "the preset is given by its name, not by 5"),
            ({"policy": True}, "the policy is given by its name, not by True"),
            ({"overrides": "sampling.steps=3"}, "overrides are a list .* not 'sampling.steps=3'"),
            ({"overrides": None}, "overrides are a list .* not None"),
            ({"overrides": [3]}, r"overrides are a list .* not \[3\]"),
            ({"overrides": {3: 4}}, "overrides are a list .* not {3: 4}"),
            ({"overrides": {"sampling.steps": "3"}}, "sampling.steps should be a valid integer, not '3'"),
            ({"overrides": {"sampling.steps": 3.0}}, "sampling.steps should be a valid integer, not 3.0"),
            ({"overrides": {"video": None}}, "video is a section, not None: set one of the keys in it"),
            ({"overrides": {"policy": None}}, "policy"),
            ({"overrides": {"policy.name": 5}}, "there is no policy '5'"),
            ({"overrides": {"model.name": None}}, "model.name should be a valid string, not None"),
            (
                {"overrides": {"sampling.guidance": "4"}},
                "sampling.guidance should be a valid number, not '4'",
            ),
        ],
    )
    def test_sentence(self, arguments, words):
        with pytest.raises(UserError, match=words):
            load_config(**{"name": "wan-tiny", **arguments})

    def test_integers_of_numpy(self):
        config = load_config("wan-tiny", overrides={"sampling.steps": np.int32(30)})
        assert type(config.sampling.steps) is int


class TestEngine:
    @pytest.mark.parametrize("config", ["wan-tiny", None, {"model": {}}])
    def test_no_config(self, config):
        with pytest.raises(UserError, match=r"made from a Config, not from .*: call load_config first"):
            Engine(config)

    def test_no_mesh(self):
        with pytest.raises(UserError, match="the mesh should be a Mesh, not 2: give one, or None"):
            Engine(load_config("wan-tiny"), mesh=2)

    def test_no_observer(self):
        with pytest.raises(UserError, match="the observer 3 has no method phase, step, note"):
            Engine(load_config("wan-tiny"), observer=3)


class TestGenerate:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"prompt": None}, "the prompt should be text, not None"),
            ({"prompt": [BALL]}, "the prompt should be text, not "),
            ({"prompt": b"a ball"}, "the prompt should be text, not "),
            ({"prompt": " \n"}, "the prompt is empty: say what the video shows"),
            ({"prompt": "a \udcff"}, r"the prompt 'a \\udcff' is not valid UTF-8: type it anew"),
            ({"seed": "7"}, "sampling.seed should be a valid integer, not '7'"),
            ({"seed": 1.5}, "sampling.seed should be a valid integer, not 1.5"),
            ({"seed": 1.0}, "sampling.seed should be a valid integer, not 1.0"),
            ({"seed": True}, "sampling.seed should be a valid integer, not True"),
            ({"seed": np.bool_(True)}, "sampling.seed should be a valid integer"),
            ({"seed": np.array([1, 2])}, "sampling.seed should be a valid integer"),
            ({"seed": -1}, "sampling.seed should be greater than or equal to 0, not -1"),
            (
                {"seed": 2**64},
                "sampling.seed should be less than 9223372036854775808, not 18446744073709551616",
            ),
            ({"negative_prompt": 5}, "sampling.negative_prompt should be a valid string, not 5"),
            ({"negative_prompt": "a \udcff"}, r"'a \\udcff' is not valid UTF-8: type it anew"),
            ({"observer": 5}, "the observer 5 has no method phase, step, note: give one like"),
            ({"observer": print}, "has no method phase, step, note"),
        ],
    )
    def test_sentence(self, idle, arguments, words):
        with pytest.raises(UserError, match=words):
            idle.generate(**{"prompt": BALL, **arguments})

    @pytest.mark.parametrize("kind", [np.int64, np.uint8])
    def test_seeds_of_numpy(self, engine, kind):
        made = engine.generate(BALL, seed=kind(7))
        assert json.loads(json.dumps(made.record))["config"]["sampling"]["seed"] == 7
        assert (made.latents == engine.generate(BALL, seed=7).latents).all()

    def test_only_a_first_video_was_waited_for(self, small):
        engine = Engine(load_config(small, policy="full", overrides={"sampling.steps": 1}))
        first, later = (engine.generate(BALL).record["start_to_first_step_seconds"] for _ in range(2))
        shared = engine.share(engine.config).generate(BALL).record["start_to_first_step_seconds"]
        assert first > 0
        assert later is shared is None

    def test_notes_are_warnings_where_nobody_listens(self, engine):
        with pytest.warns(UserWarning, match="the prompt is longer than 32 tokens .*: its end is cut off"):
            engine.generate(f"{BALL} " * 20)
        with pytest.warns(UserWarning, match="the negative prompt is longer than 32 tokens"):
            engine.generate(BALL, negative_prompt=f"{BALL} " * 20)


def test_libraries_are_silent_and_keep_their_settings(small, capfd):
    import diffusers.utils.logging
    import transformers.utils.logging

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    before = [logs.get_verbosity() for logs in libraries]
    try:
        for logs in libraries:
            logs.enable_progress_bar()
            logs.set_verbosity_info()
        made = Engine(load_config(small, policy="full", overrides={"sampling.steps": 1})).generate(BALL)
        assert all(logs.is_progress_bar_enabled() for logs in libraries)
        assert all(logs.get_verbosity() == logs.INFO for logs in libraries)
    finally:
        for logs, verbosity in zip(libraries, before, strict=True):
            logs.set_verbosity(verbosity)
    assert len(made.frames) == 5
    assert capfd.readouterr() == ("", "")
