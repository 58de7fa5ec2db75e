"""Latte on two ranks: one branch each; what its ranks cannot share is refused on all of them."""

import pytest
import torch

from jano_dist import Engine, UserError, load_config
from tests.gang.harness import gang
from tests.latte_tiny import FRAMES, save_latte

SETTINGS = {
    "video.frames": FRAMES, "video.height": 48, "video.width": 64, "sampling.steps": 6, "model.dtype": "auto",
    "runtime.device": "cpu", "policy.warmup": 3, "policy.cooldown": 1, "policy.block": [2, 2, 4],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_latte(tmp_path_factory.mktemp("latte"))


def engine(folder, **changes):
    return Engine(load_config("latte-512", overrides={**SETTINGS, "model.name": str(folder), **changes}))


def made(folder):
    """Latents, levels and frames of two prompts of different length, with whole and with sharded weights."""
    results = []
    for weights in ("replicated", "fsdp"):
        own = engine(folder, **{"model.weights": weights})
        for prompt in ("a red ball", "ball"):
            result = own.generate(prompt, seed=3, negative_prompt="blurred and small")
            results.append((result.latents, result.levels, result.frames.shape, result.record["mesh"]))
    return results


def refused(folder):
    with pytest.raises(
        UserError, match="share its branches only, not cfg 1 x kv 1 x ulysses 2: start 1 rank"
    ):
        engine(folder, **{"mesh.ulysses": 2})
    return True


def both(folder):
    return refused(folder), made(folder)


@torch.inference_mode()
def test_one_branch_on_each_rank(folder):
    ranks = gang(2, both, folder)
    alone = made(folder)
    for rank, (_, results) in enumerate(ranks):
        for (latents, levels, shape, mesh), (wanted, map_, _, _) in zip(results, alone, strict=True):
            assert (mesh["cfg"], mesh["kv"], mesh["ulysses"]) == (2, 1, 1)
            assert (latents - wanted).abs().max() <= 1e-4
            assert (levels == map_).all()
            assert shape == (0 if rank else FRAMES, 48, 64, 3)
    assert (alone[0][0] - alone[1][0]).abs().max() > 0.01  # the prompt matters
