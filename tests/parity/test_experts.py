"""Two experts (Wan2.2 A14B's kind) against diffusers' own pipeline on small random weights."""

import shutil
from pathlib import Path

import pytest
import torch

from jano_dist import Engine, UserError, load_config
from jano_dist.account.memory import memory_of
from jano_dist.degrees import Degrees
from jano_dist.models.sizes import read_sizes
from tests.lora import write_lora
from tests.parity.video_pipelines import TEXT_TOKENS, experts_pipeline, read_back
from tests.short_jano import SHORT_JANO

STEPS, SWITCH = 12, 6  # where the boundary of 0.8 lies at a shift of 3
SMALL = {
    "model.max_sequence_length": TEXT_TOKENS,
    "model.vae_dtype": "float32",
    "video.frames": 5,
    "video.height": 32,
    "video.width": 48,
    "sampling.steps": STEPS,
    "sampling.guidance": 4.0,
}
JANO = {
    "policy.block": [1, 2, 2],
    **SHORT_JANO,
    "policy.velocity": "hold",
}


class Kept:
    """Snapshots of every step before which one may be taken; goes on from one of them."""

    def __init__(self, start=None):
        self.packed, self._start = {}, start

    def newest(self, facts):
        return self._start

    def due(self, *, last):
        return not last

    def keep(self, step, packed):
        self.packed[step] = packed


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    return read_back(experts_pipeline(), tmp_path_factory.mktemp("experts") / "model")


@pytest.fixture(scope="module")
def folder(theirs):
    return Path(theirs.config._name_or_path)


def engine(folder, policy="full", overrides=None):
    own = {"model.name": str(folder), **(JANO if policy == "jano" else {}), **(overrides or {})}
    return Engine(load_config("wan-tiny", policy=policy, overrides=SMALL | own))


def latents_of(pipeline, prompt, seed, second):
    return pipeline(
        prompt,
        negative_prompt="",
        num_frames=5,
        height=32,
        width=48,
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        guidance_scale_2=second,
        generator=torch.Generator().manual_seed(seed),
        max_sequence_length=TEXT_TOKENS,
        output_type="latent",
    ).frames[0]


@pytest.mark.parametrize(
    ("prompt", "seed", "second"),
    [("a red ball", 0, None), ("a box", 1, 2.0), ("a blue box stays still", 2, 3.0)],
)
def test_full(theirs, folder, prompt, seed, second):
    ours = engine(folder, overrides={"sampling.guidance_2": second}).generate(prompt, seed=seed).latents
    reference = latents_of(theirs, prompt, seed, second)
    below = [step for step, each in enumerate(theirs.scheduler.timesteps) if each < 800]
    assert below[0] == SWITCH
    assert (ours - reference).abs().max() <= 1e-5


def test_swapping_changes_nothing(folder):
    both, swap = (engine(folder, "jano", {"model.experts": how}) for how in ("both", "swap"))
    for seed in (1, 2):  # the second video begins with the first expert again
        one, other = (each.generate("a box", seed=seed).latents for each in (both, swap))
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("more", "kinds"),
    [
        ({}, "full full full refresh active moderate | refresh active moderate active refresh full"),
        (
            {"policy.warmup_2": 2},
            "full full full refresh active moderate | full full refresh active moderate full",
        ),
        ({"policy.warmup": 6}, "full full full full full full | full full full full full full"),
    ],
    ids=["refresh", "warm-up", "late"],
)
def test_what_each_step_computes(folder, more, kinds):
    steps = engine(folder, "jano", more).generate("a red ball", seed=0).record["steps"]
    wanted = [kind for part in kinds.split(" | ") for kind in part.split()]
    assert [step["kind"] for step in steps] == wanted


@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize("velocity", ["hold", "forecast"])
def test_nothing_of_the_first_expert_is_read_after_the_switch(folder, warmup, velocity):
    """A run that begins there, with nothing in its caches and no velocity, comes to the same latent."""
    settings, kept = {"policy.warmup_2": warmup, "policy.velocity": velocity}, Kept()
    whole = engine(folder, "jano", settings | {"snapshot.seconds": 0.0})
    latents = whole.generate("a red ball", seed=0, snapshots=kept).latents
    starts = [SWITCH] if warmup == 0 else [step for step in kept.packed if step > SWITCH][:1]
    for start in starts:
        resumed = engine(folder, "jano", settings).generate("a", snapshots=Kept(kept.packed[start]))
        assert resumed.record["resumed_from_step"] == start
        assert torch.equal(resumed.latents, latents)


def test_everything_active_equals_full(folder):
    full = engine(folder).generate("a red ball", seed=1).latents
    thresholds = {"policy.static_threshold": 0.0, "policy.moderate_threshold": 0.0}
    jano = engine(folder, "jano", thresholds).generate("a red ball", seed=1)
    assert (jano.latents - full).abs().max() <= 1e-6


@pytest.mark.parametrize("policy", ["forecast", "uniform", "ras", "hsa", "astraea"])
def test_other_policies_begin_anew(folder, policy):
    steps = engine(folder, policy, {"policy.warmup": 2}).generate("a red ball", seed=0).record["steps"]
    assert steps[SWITCH]["kind"] == steps[0]["kind"] == "full"


@pytest.mark.parametrize("experts", ["both", "swap"])
def test_each_expert_has_its_loras(theirs, folder, tmp_path, experts):
    """As diffusers loads them with and without `load_into_transformer_2`, and fuses them."""
    files = [write_lora(tmp_path, theirs.transformer, seed=seed) for seed in (1, 2)]
    own = {"model.lora": [f"{files[0]}:0.5"], "model.lora_2": [str(files[1])], "model.experts": experts}
    ours = engine(folder, overrides=own).generate("a box", seed=1).latents
    fused = type(theirs).from_pretrained(folder)
    fused.load_lora_weights(str(files[0]), adapter_name="first")
    fused.load_lora_weights(str(files[1]), adapter_name="second", load_into_transformer_2=True)
    fused.fuse_lora(components=["transformer"], adapter_names=["first"], lora_scale=0.5)
    fused.fuse_lora(components=["transformer_2"], adapter_names=["second"])
    assert (ours - latents_of(fused, "a box", 1, None)).abs().max() <= 1e-5
    assert (ours - latents_of(theirs, "a box", 1, None)).abs().max() > 1e-3


def test_memory(folder):
    """Both on the device, or one of them in host memory."""
    sizes, weights = read_sizes(str(folder)), {}
    for how in ("both", "swap"):
        settings = load_config(
            "wan-tiny", overrides={**SMALL, "model.name": str(folder), "model.experts": how}
        )
        memory = memory_of(sizes, settings, Degrees(1, 1, 1))
        weights[how] = memory.resident["transformer"], memory.host.get("transformer", 0)
    one = sizes.transformer.nbytes(4)
    assert weights == {"both": (2 * one, 0), "swap": (one, one)}


class TestRefused:
    @pytest.mark.parametrize("key", ["policy.warmup_2", "sampling.guidance_2"])
    def test_without_a_second_expert(self, key):
        with pytest.raises(UserError, match=f"{key} is of a second expert, which .*: leave it out"):
            Engine(load_config("wan-tiny", overrides={key: 3}))

    def test_one_step_of_warm_up(self, folder):
        with pytest.raises(UserError, match=r"warmup_2 .* 2 steps or more: set it to 0, or to 2"):
            engine(folder, "jano", {"policy.warmup_2": 1})

    def test_the_second_expert_is_missing(self, folder, tmp_path):
        shutil.copytree(folder, tmp_path / "model")
        shutil.rmtree(tmp_path / "model" / "transformer_2")
        with pytest.raises(UserError, match=r"fetch the model again, whole"):
            engine(tmp_path / "model")

    def test_caches_inside_blocks(self, folder):
        with pytest.raises(UserError, match=r"teacache .* second expert: take another policy"):
            engine(folder, "teacache").generate("a")

    def test_swapping_what_is_cut_up(self, folder):
        with pytest.raises(UserError, match=r"experts swap .* fsdp .*: set one of the two only"):
            engine(folder, overrides={"model.experts": "swap", "model.weights": "fsdp"})

    def test_a_lora_of_the_second_expert_where_there_is_one_only(self, tmp_path):
        with pytest.raises(UserError, match=r"model.lora_2 is of a second expert, .*: leave it out"):
            Engine(load_config("wan-tiny", overrides={"model.lora_2": "second.safetensors:0.5"}))
