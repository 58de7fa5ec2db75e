"""Everything a rank computes lies on its GPU, and nothing of the host's is taken for it.

On a GPU that is pretended: where tensors of two devices meet a test fails, and what comes out is what a run
on the CPU makes.
"""

from functools import partial

import numpy as np
import pytest
import torch

from benchmarks.first_hour import Hour, cost, truth
from jano_dist import Engine, load_config
from jano_dist.cache.rows import _move
from jano_dist.degrees import Degrees
from tests.gang.harness import gang
from tests.gpu_build.pretended_gpu import pretended_gpu
from tests.latte_tiny import FRAMES, save_latte
from tests.parity import image_pipelines, video_pipelines
from tests.parity.image_pipelines import flux_pipeline, sd3_pipeline
from tests.parity.video_pipelines import experts_pipeline, i2v_pipeline, picture, ti2v_pipeline

SMALL = {
    "video.frames": 5,
    "video.height": 64,
    "video.width": 64,
    "sampling.steps": 12,
    "attention.backend": "torch",
}
JANO = {"policy.warmup": 4, "policy.cooldown": 1, "policy.block": [1, 2, 2]}
OTHERS = {
    "forecast": {},
    "uniform": {},
    "teacache": {},
    "magcache": {"policy.ratios": "wan-tiny"},
    "fbcache": {},
    "taylorseer": {},
    "pab": {},
    "toca": {},
    "ras": {},
    "hsa": {},
    "astraea": {},
    "full": {},
}
SETTINGS = [
    {},
    {"policy.score": "smooth_spread"},
    {"policy.score": "published"},
    {"policy.velocity": "hold"},
    {"policy.velocity": "forecast"},
    {"cache.kind": "hidden"},
    {"cache.dtype": "fp8"},
    {"cache.kind": "hidden", "cache.dtype": "fp8"},
    {"cache.device": "cpu"},
    {"cache.kind": "hidden", "cache.device": "cpu"},
    {"cache.dtype": "fp8", "cache.device": "cpu"},
    {"model.dtype": "bfloat16", "model.vae_dtype": "bfloat16"},
    {"model.text_encoder": "reload"},
    {"model.vae_tiling": True},
    {"model.weights": "group_offload"},
    {"attention.backend": "auto", "model.dtype": "bfloat16"},
]
FAMILIES = {
    "flux": (flux_pipeline, 1, 32, 24),
    "sd3": (sd3_pipeline, 1, 32, 24),
    "sd3 of two attentions": (partial(sd3_pipeline, dual=(0,)), 1, 32, 24),
    "experts": (experts_pipeline, 5, 32, 48),
    "i2v": (i2v_pipeline, 5, 32, 48),
    "i2v experts": (partial(i2v_pipeline, clip=False, boundary=0.8), 5, 32, 48),
    "ti2v": (ti2v_pipeline, 5, 64, 96),
}


def made(policy, overrides, name="wan-tiny"):
    """Two videos of one engine."""
    engine = Engine(load_config(name, policy=policy, overrides=overrides))
    return [engine.generate("a red ball moves left", seed=seed) for seed in (3, 4)]


def check(monkeypatch, *given):
    here = made(*given)
    with pretended_gpu(monkeypatch):
        there = made(*given)
    for one, other in zip(here, there, strict=True):
        assert (one.record["device"], other.record["device"]) == ("cpu", "pretended")
        # Text encoders differ in the last bits where weights lie in the mapped file, at any address.
        assert (one.latents - other.latents.cpu()).abs().max() <= 1e-5
        assert np.abs(one.frames.astype(int) - other.frames).max() <= 1


@pytest.mark.parametrize("own", SETTINGS, ids=str)
def test_jano(own, monkeypatch):
    check(monkeypatch, "jano", {**SMALL, **JANO, **own})


@pytest.mark.parametrize("policy", OTHERS)
def test_other_policies(policy, monkeypatch):
    check(monkeypatch, policy, {**SMALL, **OTHERS[policy]})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weights", ["replicated", "group_offload"])
def test_other_models(family, weights, tmp_path, monkeypatch):
    pipeline, frames, height, width = FAMILIES[family]
    pipeline().save_pretrained(tmp_path)
    images = frames == 1
    own = {
        "model.name": str(tmp_path),
        "model.weights": weights,
        "model.max_sequence_length": (image_pipelines if images else video_pipelines).TEXT_TOKENS,
        "video.frames": frames,
        "video.height": height,
        "video.width": width,
        "sampling.guidance": 4.0,
        "policy.block": [1, 4, 4] if images else [1, 2, 2],
    }
    if "i2v" in family:
        own["sampling.image"] = str(picture(tmp_path / "image.png", 0))
    if "experts" in family and weights == "replicated":
        own["model.experts"] = "swap"
    check(monkeypatch, "jano", {**SMALL, **JANO, **own})


def test_latte(tmp_path, monkeypatch):
    own = {"model.name": str(save_latte(tmp_path)), "model.dtype": "auto", "policy.block": [2, 2, 4]}
    size = {"video.frames": FRAMES, "video.height": 48, "video.width": 64}
    check(monkeypatch, "jano", {**SMALL, **JANO, **own, **size}, "latte-512")


# World -> (cfg, kv, ulysses), and what else is set.
MESHES = {
    2: [
        ((2, 1, 1), {}),
        ((1, 1, 2), {}),
        ((1, 2, 1), {}),
        ((1, 1, 2), {"cache.kind": "hidden"}),
        ((1, 2, 1), {"cache.kind": "hidden", "cache.device": "cpu"}),
        ((1, 2, 1), {"model.weights": "group_offload"}),
    ],
    4: [((1, 2, 2), {}), ((2, 2, 1), {"cache.device": "cpu"})],
}


def meshed(cases):
    found = []
    with pytest.MonkeyPatch.context() as patch, pretended_gpu(patch):
        for split, own in cases:
            mesh = {f"mesh.{dim}": degree for dim, degree in Degrees(*split)._asdict().items()}
            engine = Engine(
                load_config("wan-tiny", policy="jano", overrides={**SMALL, **JANO, **mesh, **own})
            )
            found.append(engine.generate("a red ball moves left", seed=3).latents.tolist())
            assert engine.model.device.type == "cuda"
    return found


@pytest.mark.parametrize("world", MESHES)
def test_meshes(world):
    """Exchanges between GPUs' tensors, which gloo carries here."""
    wanted = made("jano", {**SMALL, **JANO})[0].latents
    for rank in gang(world, meshed, MESHES[world]):
        for latents in rank:
            assert (torch.tensor(latents) - wanted).abs().max() <= 1e-4


def test_rows_in_many_places(monkeypatch):
    """As many ranks leave them; small videos on few ranks do not."""
    moves = tuple((source, 2 * source, 1) for source in range(40))
    x, here = torch.randn(40, 2, 3), torch.zeros(80, 2, 3)
    _move(x, here, moves)
    with pretended_gpu(monkeypatch):
        there = torch.zeros(80, 2, 3, device="cuda")
        _move(x.to("cuda"), there, moves)
        assert torch.equal(there.cpu(), here)


@pytest.mark.parametrize(
    "part",
    [
        truth.what_is_here,
        truth.kernels,
        truth.parity,
        truth.caches,
        cost.memory,
        cost.steps,
        cost.offloading,
        cost.decode,
    ],
)
def test_the_first_hour(part, tmp_path, monkeypatch):
    """All of it that one rank does, in bfloat16, of one layer at true width; but for what memory it takes."""
    monkeypatch.setattr(cost, "TRUE", (0.0, 1.25))
    with pretended_gpu(monkeypatch):
        assert part(Hour(torch.device("cuda", 0), 1, "bfloat16", 1, ((5, 64, 96),), tmp_path))
