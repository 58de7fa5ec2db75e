"""Image-to-video on several ranks: what the coordinator made of the picture is every rank's."""

import os
from functools import partial

import pytest
import torch
import torch.distributed as dist

from jano_dist import Engine, UserError, load_config
from jano_dist.config import change_config
from jano_dist.degrees import Degrees
from jano_dist.mesh import Mesh
from jano_dist.snapshot import Snapshot, facts_of, require_same_run
from tests.gang.harness import gang
from tests.gang.test_resume import Shelf
from tests.parity.video_pipelines import TEXT_TOKENS, i2v_pipeline, picture, ti2v_pipeline
from tests.short_jano import SHORT_JANO

SETTINGS = {
    "model.max_sequence_length": TEXT_TOKENS,
    "video.frames": 5,
    "sampling.steps": 8,
    "sampling.guidance": 4.0,
    "policy.block": [1, 2, 2],
    **SHORT_JANO,
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


def made_below(folder, folders):
    """The latents of the picture image.png where each rank is, or the sentence that it is refused with."""
    os.chdir(folders[dist.get_rank()])
    settings = {**SETTINGS, "model.name": str(folder), "sampling.image": "image.png", "sampling.steps": 5}
    settings |= {"video.height": 32, "video.width": 48, "mesh.cfg": 1, "mesh.ulysses": 3}
    try:
        engine = Engine(load_config("wan-tiny", policy="jano", overrides=settings))
        return engine.generate("a red ball", seed=3).latents
    except UserError as error:
        return str(error)


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


def test_ranks_that_find_another_picture(tmp_path):
    """Under the same name, as machines may. A rank that finds none takes what the coordinator made."""
    folder = tmp_path / "model"
    i2v_pipeline(clip=False).save_pretrained(folder)
    own, other, none = places = [tmp_path / name for name in ("own", "other", "none")]
    for place in places:
        place.mkdir()
    picture(own / "image.png", 0)
    picture(other / "image.png", 1)
    for answer in gang(3, made_below, folder, [own, other, none]):
        assert answer.startswith("another image on rank 1 than on rank 0: start every rank with the same")
    latents = gang(3, made_below, folder, [own, own, none])
    assert all(torch.equal(each, latents[0]) for each in latents)


class Checked(Shelf):
    def newest(self, run):
        require_same_run(run, facts_of(self.given))
        return self.given


def test_what_a_snapshot_holds_of_the_picture(tmp_path, monkeypatch):
    """A run goes on without encoders and without the file, but not with another picture."""
    image, shelf = picture(tmp_path / "image.png", 0), Shelf()
    i2v_pipeline().save_pretrained(tmp_path / "model")
    settings = config(tmp_path / "model", (32, 48))
    settings = change_config(settings.model_dump(), {"sampling.image": str(image)}, "here")
    engine = Engine(settings)
    undisturbed = engine.generate("a red ball", seed=3, snapshots=shelf).latents
    given = Checked(shelf.kept[3])
    tensors = Snapshot.unpack(shelf.kept[3]).tensors
    assert tensors["condition.latent"].shape == (1, 8, 2, 4, 6)
    assert tensors["condition.image"].shape == (1, 5, 20)
    monkeypatch.setattr(engine.model, "encode", None)
    monkeypatch.setattr(engine.model, "look", None)
    picture(image, 1)
    with pytest.raises(UserError, match="the unfinished run was begun with another image"):
        engine.generate("a red ball", seed=3, snapshots=given)
    image.unlink()
    again = engine.generate("a red ball", seed=3, snapshots=given)
    assert again.record["resumed_from_step"] == 3
    assert torch.equal(again.latents, undisturbed)
