"""Caches inside the blocks against those that diffusers has, over its own pipeline.

Where diffusers is right: FirstBlockCache decides per branch, so it is compared without guidance; PAB's state
is shared by the branches there, so it too; MagCache and TaylorSeer decide by the step alone.
"""

import copy

import pytest
import torch
from diffusers import (
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import MagCacheConfig

PROMPT, SEED, STEPS, SHIFT = "a red ball moves left", 3, 12, 3.0
PARTS = r"blocks\.\d+\.(attn1|attn2|ffn)"
# The magnitudes fall slowly first and fast then, as they do in models.
RATIOS = [1.0, 1.03, 1.01, 0.99, 0.985, 0.98, 0.97, 0.96, 0.95, 0.93, 0.9, 0.85]


@pytest.fixture
def cached(pipeline):
    """`cached(cache, guidance)`: latents of diffusers' pipeline with one of its caches."""
    own = copy.deepcopy(pipeline)
    own.scheduler = type(own.scheduler).from_config(own.scheduler.config, flow_shift=SHIFT)

    def make(cache, guidance):
        own.transformer.enable_cache(cache)
        return own(
            PROMPT,
            num_frames=9,
            height=96,
            width=64,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(SEED),
            max_sequence_length=32,
            output_type="latent",
        ).frames[0]

    make.pipeline = own
    return make


def computed(record, part="attn1"):
    """The steps in which a part was computed of every token in every layer."""
    most = max(step["blocks"][part] for step in record["steps"])
    return [step["index"] for step in record["steps"] if step["blocks"][part] == most]


def alike(result, theirs):
    assert (result.latents - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.fixture
def made(engine):
    def make(policy, guidance, **options):
        settings = {f"policy.{name}": value for name, value in options.items()}
        sampling = {"sampling.steps": STEPS, "sampling.guidance": guidance, "sampling.shift": SHIFT}
        return engine(policy, {**sampling, **settings}).generate(PROMPT, seed=SEED)

    return make


@pytest.mark.parametrize("threshold", [0.15, 0.25])
def test_first_block_cache(cached, made, threshold):
    result = made("fbcache", 1.0, threshold=threshold)
    assert 2 < len(computed(result.record)) < STEPS - 2
    alike(result, cached(FirstBlockCacheConfig(threshold=threshold), 1.0))


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize(("threshold", "skips", "ratios"), [(0.06, 3, RATIOS), (0.2, 2, RATIOS[::2])])
def test_mag_cache(cached, made, guidance, threshold, skips, ratios):
    settings = {"threshold": threshold, "max_skips": skips, "retention": 0.2, "ratios": ratios}
    result = made("magcache", guidance, **settings)
    assert 4 < len(computed(result.record)) < STEPS - 2
    theirs = MagCacheConfig(
        threshold=threshold,
        max_skip_steps=skips,
        retention_ratio=0.2,
        num_inference_steps=STEPS,
        mag_ratios=ratios,
    )
    alike(result, cached(theirs, guidance))


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_taylor_seer(cached, made, guidance, order):
    """With interval 2 and 3 first steps both compute the steps 0, 1, 2, 4, 6, ..."""
    result = made("taylorseer", guidance, interval=2, order=order, first_steps=3)
    assert computed(result.record) == [0, 1, 2, 4, 6, 8, 10]
    theirs = TaylorSeerCacheConfig(
        cache_interval=2,
        disable_cache_before_step=3,
        max_order=order,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=[PARTS],
    )
    alike(result, cached(theirs, guidance))


def test_pyramid_attention_broadcast(cached, made):
    result = made("pab", 1.0, self_range=2, cross_range=5, timesteps=(100, 850))
    # The timesteps are above 850 up to step 4, and below 100 nowhere.
    assert computed(result.record) == [0, 1, 2, 3, 4, 6, 8, 10]
    assert computed(result.record, "attn2") == [0, 1, 2, 3, 4, 5, 10]
    assert computed(result.record, "ffn") == list(range(STEPS))
    theirs = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        cross_attention_block_skip_range=5,
        spatial_attention_timestep_skip_range=(100, 850),
        cross_attention_timestep_skip_range=(100, 850),
        spatial_attention_block_identifiers=("blocks",),
        cross_attention_block_identifiers=("blocks",),
        current_timestep_callback=lambda: cached.pipeline.current_timestep,
    )
    alike(result, cached(theirs, 1.0))
