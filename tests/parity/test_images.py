"""Flux.1 and Stable Diffusion 3 against diffusers' own pipelines, on small random weights."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jano_dist import Engine, UserError, load_config
from jano_dist.cache import CacheSizes, Keeping, NoCache, make_caches
from jano_dist.models.sizes import read_sizes
from jano_dist.tokens.plan import TokenPlan
from jano_dist.tokens.schedule import StepKind
from tests.parity.image_pipelines import TEXT_TOKENS, flux_pipeline, saved, sd3_pipeline
from tests.short_jano import SHORT_JANO

PROMPTS = [("a red ball", 3), ("a blue box stays still", 0), ("", 11)]
SIZES = [(32, 24), (40, 40)]
JANO = {
    "policy.block": [1, 4, 4],
    **SHORT_JANO,
}
MAKERS = {
    "flux-dev": flux_pipeline,
    "flux-schnell": lambda: flux_pipeline(guidance_embeds=False, dynamic=False),
    "sd3": lambda: sd3_pipeline(qk_norm=None),
    "sd3.5": sd3_pipeline,
    "sd3.5-medium": lambda: sd3_pipeline(dual=(0, 1)),
}


def kv_cache(model, text, tokens):
    """Of one rank and branch."""
    sizes = model.geometry

    def of(layers, rows, second=None):
        return CacheSizes(layers, rows, rows, sizes.heads, sizes.heads, sizes.head_dim, second)

    second = of(sizes.second_layers, tokens) if sizes.second_layers else None
    every = of(sizes.layers, text + tokens, second)
    return make_caches("kv", Keeping(), every, 1, model.dtype, model.device)[0][0]


class Family:
    """One pipeline: diffusers', and our engines on the same folder."""

    def __init__(self, folder, make):
        self.folder, self.theirs = folder, saved(make(), folder)
        self._model = None

    def engine(self, policy="full", size=(32, 24), overrides=None, **options):
        settings = {
            "model.name": str(self.folder),
            "model.max_sequence_length": TEXT_TOKENS,
            "model.vae_dtype": "float32",
            "video.frames": 1,
            "video.height": size[0],
            "video.width": size[1],
            "sampling.steps": 9,
            "sampling.guidance": 3.5,
            **(JANO if policy == "jano" else {}),
            **(overrides or {}),
        }
        config = load_config("wan-tiny", policy=policy, overrides=settings)
        made = Engine(config, model=self._model, **options)
        self._model = made.model
        return made

    def reference(self, prompt, seed, size, output="latent", **options):
        made = self.theirs(
            prompt,
            height=size[0],
            width=size[1],
            num_inference_steps=9,
            guidance_scale=3.5,
            generator=torch.Generator().manual_seed(seed),
            max_sequence_length=TEXT_TOKENS,
            output_type=output,
            **options,
        ).images[0]
        if output == "latent" and "Flux" in type(self.theirs).__name__:
            made = self.theirs._unpack_latents(made[None], *size, self.theirs.vae_scale_factor)[0]
        return made


@pytest.fixture(scope="module", params=MAKERS)
def family(request, tmp_path_factory):
    return Family(tmp_path_factory.mktemp("images") / request.param, MAKERS[request.param])


@pytest.mark.parametrize("size", SIZES)
def test_full(family, size):
    engine = family.engine(size=size)
    for prompt, seed in PROMPTS:
        ours = engine.generate(prompt or "a", seed=seed).latents[:, 0]
        assert (ours - family.reference(prompt or "a", seed, size)).abs().max() <= 1e-5


def test_pixels(family):
    ours = family.engine().generate("a red ball", seed=3).frames
    theirs = family.reference("a red ball", 3, (32, 24), output="np")
    assert ours.shape == (1, 32, 24, 3)
    assert np.abs(ours[0] / 255 - theirs).max() <= 0.51 / 255


def test_guidance(family):
    """Another scale is another image where there is guidance at all; branches follow it."""
    engines = [family.engine(overrides={"sampling.guidance": scale}) for scale in (3.5, 2.0)]
    one, other = (engine.generate("a red ball", seed=3) for engine in engines)
    kind = engines[0].model.geometry.guidance
    assert torch.equal(one.latents, other.latents) == (kind == "none")
    assert engines[0].model.geometry.branches(3.5) == (2 if kind == "free" else 1)


def test_negative_prompt(family):
    if family.engine().model.geometry.guidance != "free":
        return
    ours = family.engine().generate("a red ball", seed=2, negative_prompt="a box").latents[:, 0]
    theirs = family.reference("a red ball", 2, (32, 24), negative_prompt="a box")
    assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("shift", [None, 5.0])
def test_timesteps(family, shift):
    """A shift of one's own takes the place of one that follows the size."""
    size = (40, 40)
    ours = family.engine(size=size, overrides={"sampling.shift": shift}).model
    timesteps = ours.scheduler(9, shift, (1, 20, 20)).timesteps
    if shift is None:
        family.reference("a", 0, size)
        assert torch.equal(timesteps, family.theirs.scheduler.timesteps)
    else:
        sigma = np.linspace(1, 1 / 9, 9) if "Flux" in type(family.theirs).__name__ else None
        if sigma is not None:  # the formula of a static shift
            assert np.allclose(timesteps, 1000 * shift * sigma / (1 + (shift - 1) * sigma), atol=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize("kind", [StepKind.MODERATE, StepKind.ACTIVE])
def test_a_partial_step_equals_the_rows_of_a_full_one(family, kind):
    model, shape, tokens = family.engine().model, (1, 16, 12), 48
    geometry, timestep, latent = model.geometry, torch.tensor(600.0), model.noise((1, 16, 12), seed=4)
    branch = model.branch(model.encode(["a red ball"]), 3.5)
    levels = torch.randint(1, 4, (tokens,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    text = branch.text.shape[1]
    plan = TokenPlan.from_levels(levels, text)
    cache = kv_cache(model, text, tokens)
    every = model.forward(latent, timestep, branch, torch.arange(tokens), NoCache(geometry.attentions))
    model.forward(latent, timestep, branch, plan.rows(StepKind.REFRESH), cache)
    rows = plan.rows(kind)
    assert 0 < len(rows) < tokens
    part = model.forward(latent, timestep, branch, rows, cache)
    assert (part - every[rows]).abs().max() <= 1e-6 * float(every.abs().max()) + 1e-6
    assert model.unpatchify(every, shape).shape == latent.shape


def test_everything_active_equals_full(family):
    full = family.engine().generate("a red ball", seed=1).latents
    thresholds = {"policy.static_threshold": 0.0, "policy.moderate_threshold": 0.0}
    jano = family.engine("jano", overrides=thresholds).generate("a red ball", seed=1)
    assert jano.record["levels"]["active"] == 1.0
    assert (jano.latents - full).abs().max() <= 1e-6


def test_flops_are_those_that_torch_counts(family):
    model = family.engine().model
    geometry, latent, timestep = model.geometry, model.noise((1, 16, 12), seed=4), torch.tensor(600.0)
    branch = model.branch(model.encode(["a"]), 3.5)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.forward(latent, timestep, branch, torch.arange(48), NoCache(geometry.attentions))
    assert counter.get_total_flops() == geometry.forward_flops(48, 48, branch.text.shape[1])


def test_text_rows_are_always_fresh(family):
    """What a cache holds of the text is overwritten before it is read: spoilt, it changes nothing."""
    model, tokens = family.engine().model, 48
    geometry, timestep, latent = model.geometry, torch.tensor(600.0), model.noise((1, 16, 12), seed=4)
    branch = model.branch(model.encode(["a red ball"]), 3.5)
    text = branch.text.shape[1]
    plan = TokenPlan.from_levels(torch.tensor([3] * 20 + [1] * 28, dtype=torch.uint8), text)
    results = []
    with torch.inference_mode():
        for spoil in (False, True):
            cache = kv_cache(model, text, tokens)
            model.forward(latent, timestep, branch, plan.rows(StepKind.REFRESH), cache)
            if spoil:
                for layer in cache.layers[: geometry.layers]:
                    for part in layer._store._kept:
                        part[:text] = 1e3
            results.append(model.forward(latent, timestep, branch, plan.rows(StepKind.ACTIVE), cache))
    assert torch.equal(*results)


def test_sizes(family):
    sizes, theirs = read_sizes(str(family.folder)), family.theirs
    assert sizes.transformer.plain == sum(each.numel() for each in theirs.transformer.state_dict().values())
    assert sizes.vae == sum(each.numel() for each in theirs.vae.parameters())
    encoders = [part for name, part in theirs.components.items() if name.startswith("text_encoder")]
    assert sizes.text_encoder == sum(each.numel() for part in encoders for each in part.parameters())


class TestRefused:
    def test_frames(self, family):
        with pytest.raises(UserError, match=r"makes images, not 5 frames: use --frames 1"):
            family.engine(overrides={"video.frames": 5})

    def test_caches_inside_blocks(self, family):
        with pytest.raises(UserError, match=r"policy teacache .* only Wan.*: take another policy"):
            family.engine("teacache")
