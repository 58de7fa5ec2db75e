"""Image-to-video on several ranks: what the coordinator made of the picture is every rank's."""

from functools import partial

import pytest

from jano_dist import Engine, load_config
from jano_dist.degrees import Degrees
from jano_dist.mesh import Mesh
from tests.gang.harness import gang
from tests.parity.video_pipelines import TEXT_TOKENS, i2v_pipeline, picture, ti2v_pipeline

SETTINGS = {
    "model.max_sequence_length": TEXT_TOKENS,
    "video.frames": 5,
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
ONE, TWO = {}, {"model.experts": "swap"}
# Kind -> its pipeline, the size of its videos, by world the degrees, cache, weights and what else is set.
KINDS = {
    "clip": (i2v_pipeline, (32, 48), {
        2: [((2, 1, 1), "kv", "replicated", ONE), ((1, 1, 2), "hidden", "fsdp", ONE),
            ((1, 2, 1), "kv", "group_offload", ONE)],
        3: [((1, 3, 1), "kv", "replicated", ONE), ((1, 1, 3), "kv", "replicated", ONE)],
        4: [((2, 1, 2), "kv", "replicated", ONE), ((1, 2, 2), "hidden", "replicated", ONE)],
    }),
    "two experts": (partial(i2v_pipeline, clip=False, boundary=0.8), (32, 48), {
        2: [((2, 1, 1), "kv", "fsdp", ONE), ((1, 1, 2), "hidden", "replicated", TWO)],
    }),
    "first frame": (ti2v_pipeline, (64, 96), {
        2: [((2, 1, 1), "kv", "replicated", ONE), ((1, 1, 2), "hidden", "fsdp", ONE),
            ((1, 2, 1), "kv", "group_offload", ONE)],
        5: [((1, 5, 1), "kv", "replicated", ONE)],
    }),
}  # fmt: skip


def config(folder, size, cache="kv", weights="replicated", more=ONE):
    own = {"model.name": str(folder), "sampling.image": str(folder / "image.png")}
    own |= {"video.height": size[0], "video.width": size[1]}
    own |= {"cache.kind": cache, "model.weights": weights, **more}
    return load_config("wan-tiny", policy="jano", overrides=SETTINGS | own)


def made(folder, size, cases):
    latents = []
    for split, *rest in cases:
        engine = Engine(config(folder, size, *rest), mesh=Mesh(**Degrees(*split)._asdict()))
        latents.append(engine.generate("a red ball", seed=3).latents)
    return latents


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    """Folder, size, cases, and the latent of one process."""
    pipeline, size, cases = KINDS[request.param]
    folder = tmp_path_factory.mktemp("models") / "model"
    pipeline().save_pretrained(folder)
    picture(folder / "image.png", 0)
    result = Engine(config(folder, size)).generate("a red ball", seed=3)
    assert {step["kind"] for step in result.record["steps"]} >= {"full", "refresh", "active"}
    return folder, size, cases, result.latents


def test_meshes(kind):
    folder, size, cases, alone = kind
    for world in cases:
        for rank in gang(world, made, folder, size, cases[world]):
            for latents in rank:
                assert (latents - alone).abs().max() <= 1e-4
