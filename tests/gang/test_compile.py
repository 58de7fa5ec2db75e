"""Compiled blocks on several ranks, wherever the weights lie."""

from functools import partial

import pytest
import torch

from jano_dist import Engine, load_config
from jano_dist.degrees import Degrees
from jano_dist.mesh import Mesh
from tests.gang.harness import gang
from tests.short_jano import SHORT_JANO

SETTINGS = {
    **SHORT_JANO,
    "sampling.steps": 10,
    "video.frames": 5,
    "video.height": 64,
    "video.width": 64,
    "policy.block": [1, 2, 2],
}
CASES = [
    ((1, 1, 2), "kv", "replicated"),
    ((1, 2, 1), "hidden", "fsdp"),
    ((2, 1, 1), "kv", "group_offload"),
]


def config(cache="kv", weights="replicated", *, compile=False):
    own = {"cache.kind": cache, "model.weights": weights, "model.compile": compile}
    return load_config("wan-tiny", policy="jano", overrides=SETTINGS | own)


def made(cases):
    torch.compile = partial(torch.compile, backend="eager")  # traced, and run as it is
    latents = []
    for split, *rest in cases:
        torch._dynamo.reset()
        engine = Engine(config(*rest, compile=True), mesh=Mesh(**Degrees(*split)._asdict()))
        latents.append(engine.generate("a red ball", seed=3).latents)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
        torch._dynamo.utils.counters.clear()
    return latents


@pytest.mark.slow  # every rank traces the blocks anew for each case
def test_meshes():
    alone = Engine(config()).generate("a red ball", seed=3).latents
    for rank in gang(2, made, CASES):
        for latents in rank:
            assert (latents - alone).abs().max() <= 1e-4
