"""Image-to-video on several ranks: what the coordinator made of the picture is every rank's."""

import pytest

from jano_dist import Engine, load_config
from jano_dist.degrees import Degrees
from jano_dist.mesh import Mesh
from tests.gang.harness import gang
from tests.parity.video_pipelines import TEXT_TOKENS, i2v_pipeline, picture

SETTINGS = {
    "model.max_sequence_length": TEXT_TOKENS,
    "video.frames": 5,
    "video.height": 32,
    "video.width": 48,
    "sampling.steps": 8,
    "sampling.guidance": 4.0,
    "policy.block": [1, 2, 2],
    "policy.warmup": 3,
    "policy.cooldown": 1,
    "policy.static_threshold": 0.3,
    "policy.moderate_threshold": 0.6,
    "policy.static_interval": 4,
    "policy.moderate_interval": 2,
}
CASES = {
    2: [((2, 1, 1), "kv", "replicated"), ((1, 1, 2), "hidden", "fsdp"), ((1, 2, 1), "kv", "group_offload")],
    3: [((1, 3, 1), "kv", "replicated"), ((1, 1, 3), "kv", "replicated")],
    4: [((2, 1, 2), "kv", "replicated"), ((1, 2, 2), "hidden", "replicated")],
}


def config(folder, cache="kv", weights="replicated"):
    own = {"model.name": str(folder), "sampling.image": str(folder / "image.png")}
    own |= {"cache.kind": cache, "model.weights": weights}
    return load_config("wan-tiny", policy="jano", overrides=SETTINGS | own)


def made(folder, cases):
    latents = []
    for split, cache, weights in cases:
        engine = Engine(config(folder, cache, weights), mesh=Mesh(**Degrees(*split)._asdict()))
        latents.append(engine.generate("a red ball", seed=3).latents)
    return latents


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "i2v"
    i2v_pipeline().save_pretrained(path)
    picture(path / "image.png", 0)
    return path


@pytest.fixture(scope="module")
def alone(folder):
    result = Engine(config(folder)).generate("a red ball", seed=3)
    assert {step["kind"] for step in result.record["steps"]} >= {"full", "refresh", "active"}
    return result.latents


@pytest.mark.parametrize("world", CASES)
def test_meshes(folder, alone, world):
    for rank in gang(world, made, folder, CASES[world]):
        for latents in rank:
            assert (latents - alone).abs().max() <= 1e-4
