"""Exchanges that end as late as they may: their result is nothing until it is waited for, and what is being
sent must not change meanwhile. On GPUs, where nobody waits for the host, that is how they are."""

import pytest
import torch
import torch.distributed as dist

import jano_dist.mesh
from jano_dist import Engine, load_config
from jano_dist.degrees import Degrees
from jano_dist.mesh import Mesh
from tests.gang.harness import gang
from tests.parity.image_pipelines import TEXT_TOKENS, flux_pipeline
from tests.short_jano import SHORT_JANO

VIDEO = {"video.frames": 5, "video.height": 64, "video.width": 64, "policy.block": [1, 2, 2]}
IMAGE = {
    "model.max_sequence_length": TEXT_TOKENS,
    "video.frames": 1,
    "video.height": 32,
    "video.width": 24,
    "policy.block": [1, 4, 4],
}
JANO = {**SHORT_JANO, "sampling.steps": 10}


class Late:
    """A collective's work: done at once, shown when it is waited for."""

    def __init__(self, result, arrived, sent):
        self._result, self._arrived, self._sent, self._before = result, arrived, sent, sent.clone()

    def wait(self):
        assert torch.equal(self._sent, self._before), "what was being sent has changed"
        self._result.copy_(self._arrived)


def late(result, rows, received=None, sent=None, group=None, async_op=False):
    arrived = torch.empty_like(result)
    dist.all_to_all_single(arrived, rows, received, sent, group=group)
    if not async_op:
        return result.copy_(arrived)
    # NaN in every float, whether alone or as bytes of one.
    result.view(torch.uint8).fill_(0xFF) if result.numel() else None
    return Late(result, arrived, rows)


class LateDist:
    def __getattr__(self, name):
        return late if name == "all_to_all_single" else getattr(dist, name)


def config(kind, folder, cache):
    own = {**JANO, **(VIDEO if kind == "wan" else {**IMAGE, "model.name": str(folder)}), "cache.kind": cache}
    return load_config("wan-tiny", policy="jano", overrides=own)


def made(folder, cases):
    jano_dist.mesh.dist = LateDist()
    latents = []
    for kind, cache, split in cases:
        engine = Engine(config(kind, folder, cache), mesh=Mesh(**Degrees(*split)._asdict()))
        latents.append(engine.generate("a red ball", seed=3).latents)
    return latents


MESHES = {"wan": [(2, 1, 2), (1, 2, 2), (1, 4, 1)], "flux": [(1, 2, 2)]}


@pytest.mark.parametrize("cache", ["kv", "hidden"])
def test_results_of_exchanges_are_waited_for(tmp_path, cache):
    flux_pipeline().save_pretrained(tmp_path)
    cases = [(kind, cache, split) for kind in MESHES for split in MESHES[kind]]
    alone = {
        kind: Engine(config(kind, tmp_path, cache)).generate("a red ball", seed=3).latents for kind in MESHES
    }
    for rank in gang(4, made, tmp_path, cases):
        for own, (kind, _, _) in zip(rank, cases, strict=True):
            assert (own - alone[kind]).abs().max() <= 1e-4
