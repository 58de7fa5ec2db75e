"""Two experts on several ranks: all turn to the second one at the same step, with caches of their own."""

import pytest

from jano_dist import Engine, load_config
from jano_dist.degrees import Degrees
from jano_dist.mesh import Mesh
from tests.gang.harness import gang
from tests.parity.test_experts import JANO, SMALL
from tests.parity.video_pipelines import experts_pipeline

CASES = {
    2: [
        ((2, 1, 1), "kv", {}),
        ((1, 1, 2), "hidden", {"model.weights": "fsdp"}),
        ((1, 2, 1), "kv", {"model.weights": "group_offload"}),
        ((1, 1, 2), "kv", {"model.experts": "swap", "policy.warmup_2": 2}),
    ],
    4: [((2, 1, 2), "kv", {}), ((1, 2, 2), "hidden", {"policy.warmup_2": 2})],
}


def config(folder, cache="kv", more=None):
    own = {"model.name": str(folder), "cache.kind": cache, **(more or {})}
    return load_config("wan-tiny", policy="jano", overrides=SMALL | JANO | own)


def made(folder, cases):
    latents = []
    for split, cache, more in cases:
        engine = Engine(config(folder, cache, more), mesh=Mesh(**Degrees(*split)._asdict()))
        latents.append(engine.generate("a red ball", seed=3).latents)
    return latents


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "experts"
    experts_pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def alone(folder):
    """Latents of one process, by the second warm-up."""
    warm = {"policy.warmup_2": 2}
    return [Engine(config(folder, more=more)).generate("a red ball", seed=3).latents for more in ({}, warm)]


@pytest.mark.parametrize("world", CASES)
def test_meshes(folder, alone, world):
    for rank in gang(world, made, folder, CASES[world]):
        for latents, (_, _, more) in zip(rank, CASES[world], strict=True):
            assert (latents - alone["policy.warmup_2" in more]).abs().max() <= 1e-4
