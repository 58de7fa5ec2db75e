"""Caches and policies with every family: what they keep and skip must not depend on whose tokens they are."""

from functools import partial

import pytest

from jano_dist import Engine, load_config
from tests.parity import image_pipelines, video_pipelines
from tests.parity.image_pipelines import flux_pipeline, sd3_pipeline
from tests.parity.video_pipelines import experts_pipeline, i2v_pipeline, picture, ti2v_pipeline
from tests.short_jano import SHORT_JANO

# Pipeline, frames, height, width, whether of a picture.
FAMILIES = {
    "flux": (flux_pipeline, 1, 32, 24, False),
    "sd3": (sd3_pipeline, 1, 32, 24, False),
    "experts": (experts_pipeline, 5, 32, 48, False),
    "i2v": (i2v_pipeline, 5, 32, 48, True),
    "i2v experts": (partial(i2v_pipeline, clip=False, boundary=0.8), 5, 32, 48, True),
    "ti2v": (ti2v_pipeline, 5, 64, 96, True),
}
# Policies that keep nothing from one step to the next.
IDLE = {
    "ras": {"policy.ratio": 1.0},
    "hsa": {"policy.divisors": [1, 1, 1]},
    "astraea": {"policy.budgets": [1.0]},
    "uniform": {"policy.interval": 1},
    "forecast": {"policy.max_interval": 1},
}


class Family:
    def __init__(self, folder, pipeline, frames, height, width, pictured):
        pipeline().save_pretrained(folder)
        images = frames == 1
        self._model = None
        self._settings = {
            "model.name": str(folder),
            "model.max_sequence_length": (image_pipelines if images else video_pipelines).TEXT_TOKENS,
            "video.frames": frames,
            "video.height": height,
            "video.width": width,
            "sampling.steps": 10,
            "sampling.guidance": 4.0,
            "sampling.image": str(picture(folder / "image.png", 0)) if pictured else None,
        }
        self._block = {"policy.block": [1, 4, 4] if images else [1, 2, 2]}
        self.full = self.latents("full")

    def latents(self, policy, overrides=None):
        own = self._settings | (SHORT_JANO | self._block if policy == "jano" else {}) | (overrides or {})
        engine = Engine(load_config("wan-tiny", policy=policy, overrides=own), model=self._model)
        self._model = engine.model
        done = engine.generate("a red ball", seed=0)
        if policy == "jano":
            assert {step["kind"] for step in done.record["steps"]} >= {"refresh", "active", "moderate"}
        return done.latents


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    return Family(tmp_path_factory.mktemp("families") / "model", *FAMILIES[request.param])


def test_caches(family):
    """Where and as what they are kept changes nothing; in 8 bits they lose what 3 bits of mantissa lose."""
    plain = family.latents("jano")
    assert (plain - family.full).abs().max() > 1e-4  # something was kept
    for kind in ("kv", "hidden"):
        own = family.latents("jano", {"cache.kind": kind})
        assert (own - plain).abs().max() <= 1e-5
        eight = {}
        for device in ("accelerator", "cpu"):
            settings = {"cache.kind": kind, "cache.device": device}
            assert family.latents("jano", settings).equal(own)
            eight[device] = family.latents("jano", settings | {"cache.dtype": "fp8"})
        assert eight["cpu"].equal(eight["accelerator"])
        lost = (eight["cpu"] - own).norm() / own.norm()
        assert 0 < lost <= 2**-4


@pytest.mark.parametrize("policy", IDLE)
def test_policies_that_keep_nothing_equal_full(family, policy):
    assert (family.latents(policy, IDLE[policy]) - family.full).abs().max() <= 1e-6
