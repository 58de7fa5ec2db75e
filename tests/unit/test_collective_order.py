"""What every rank of a large mesh exchanges, in order: no rank may wait for one that is at something else.

One process plays all ranks, one after the other, with a process group that only takes notes.
What the coordinator broadcast is played back to the others, as their steps follow from it.
"""

from types import SimpleNamespace

import pytest
import torch

import jano_dist.groups
import jano_dist.mesh
from jano_dist import load_config
from jano_dist.denoise import Denoiser
from jano_dist.mesh import Mesh
from jano_dist.models import load_model
from jano_dist.observe import NullObserver
from jano_dist.snapshot import NoSnapshots
from tests.gang.maps import FollowMap
from tests.parity import image_pipelines, video_pipelines

KINDS = ("full", "refresh", "active", "moderate", "skip", "chosen", "refresh", "active", "full")


class Group:
    def __init__(self, ranks):
        self.ranks = tuple(ranks)


class Recorder:
    """`torch.distributed` of one rank. Notes (ranks of the group, operation, sizes) of each collective."""

    DistError = torch.distributed.DistError

    def __init__(self, rank, world, said):
        self.rank, self.notes, self._said = rank, [], iter(said)
        self.group = SimpleNamespace(WORLD=Group(range(world)))
        self.spoken = []  # what this rank broadcast to all

    def get_rank(self):
        return self.rank

    def get_process_group_ranks(self, group):
        return list(group.ranks)

    def new_subgroups_by_enumeration(self, groups, timeout, backend=None):
        own = next((ranks for ranks in groups if self.rank in ranks), None)
        return own and Group(own), None

    def new_group(self, timeout, backend=None):
        return Group(self.group.WORLD.ranks)

    def _note(self, group, *what):
        self.notes.append(((group or self.group.WORLD).ranks, *what))

    def all_to_all_single(self, result, rows, received=None, sent=None, group=None, async_op=False):
        if sent is None:  # a group is tried out
            result.copy_(torch.tensor(group.ranks))
            return self._note(group, "try out")
        assert sum(sent) == len(rows)
        assert sum(received) == len(result)
        self._note(group, "all-to-all", tuple(rows.shape[1:]), rows.dtype, tuple(sent), tuple(received))
        result.zero_()
        return SimpleNamespace(wait=lambda: None)

    def broadcast(self, tensor, src=None, group=None, group_src=None):
        self._note(group, "broadcast", tuple(tensor.shape), tensor.dtype)
        if group is not None and group is not self.group.WORLD:
            tensor.fill_(group.ranks[0])
        elif self.rank == 0:
            self.spoken.append(tensor.clone())
        else:
            tensor.copy_(next(self._said))

    def all_reduce(self, tensor, group=None):
        self._note(group, "all-reduce", tuple(tensor.shape), tensor.dtype)

    def all_gather(self, outputs, tensor):
        self._note(None, "all-gather", tuple(tensor.shape), tensor.dtype)
        for output in outputs:
            output.copy_(tensor)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model of video, and one whose text is part of the sequence; a latent and conditions for each."""
    torch.manual_seed(0)
    wan, flux = video_pipelines.experts_pipeline(), image_pipelines.flux_pipeline()
    wan.register_modules(transformer=video_pipelines.transformer(4, heads=8), transformer_2=None)
    wan.register_to_config(boundary_ratio=None)
    made = {}
    for name, pipeline, latent in (("wan", wan, (2, 12, 14)), ("flux", flux, (1, 16, 12))):
        folder = tmp_path_factory.mktemp("models") / name
        pipeline.save_pretrained(folder)
        length = image_pipelines.TEXT_TOKENS if name == "flux" else video_pipelines.TEXT_TOKENS
        held = {"dtype": "float32", "vae_dtype": "float32", "max_sequence_length": length}
        model = load_model(str(folder), device=torch.device("cpu"), **held)
        prompts = ["a", ""][: model.geometry.branches(4.0)]
        made[name] = model, latent, model.encode(prompts), length
    return made


def notes_of(monkeypatch, rank, degrees, cache, model, said):
    """All collectives of one rank of a mesh, forming it and denoising; and what it broadcast."""
    world = degrees[0] * degrees[1] * degrees[2]
    recorder = Recorder(rank, world, said)
    for module in (jano_dist.mesh, jano_dist.groups):
        monkeypatch.setattr(module, "dist", recorder)
    loaded, latent, conditions, length = model
    overrides = {"sampling.steps": len(KINDS), "sampling.guidance": 4.0, "cache.kind": cache}
    overrides |= {"model.max_sequence_length": length}
    mesh = Mesh(**dict(zip(("cfg", "kv", "ulysses"), degrees, strict=True)), world=world, local_world=8)
    denoiser = Denoiser(load_config("wan-tiny", overrides=overrides), loaded, mesh, latent)
    tokens = latent[0] * latent[1] * latent[2] // 4
    policy = FollowMap(tokens // 5, tokens // 4, tokens - tokens // 5 - tokens // 4, KINDS)
    with torch.inference_mode():
        state = denoiser.begin(mesh.broadcast_named(conditions), seed=0)
        denoiser.run(state, policy, NullObserver(), NoSnapshots(), {})
        denoiser.step_rows(state)
    return recorder.notes, recorder.spoken


CASES = [
    ((2, 2, 2), "kv", "wan"),
    ((1, 8, 1), "hidden", "wan"),
    ((1, 4, 2), "kv", "flux"),
    ((2, 1, 8), "hidden", "wan"),
    ((1, 8, 2), "hidden", "flux"),
    ((2, 3, 4), "kv", "wan"),
    ((2, 4, 8), "kv", "wan"),
    ((1, 16, 4), "hidden", "wan"),
]


@pytest.mark.parametrize(("degrees", "cache", "name"), CASES, ids=str)
def test_pairwise(monkeypatch, models, degrees, cache, name):
    world = degrees[0] * degrees[1] * degrees[2]
    said, notes = [], []
    for rank in range(world):
        own, spoken = notes_of(monkeypatch, rank, degrees, cache, models[name], said)
        said = said or spoken
        notes.append(own)
    seen = {note[1] for note in notes[0]}
    assert seen >= {"try out", "all-to-all", "broadcast", "all-gather"}
    for one in range(world):
        for other in range(one):
            check_pair(one, other, notes)


def check_pair(one, other, notes):
    """The collectives that two ranks have part in both are the same, in the same order; what one sends the
    other is as much as that one receives."""
    mine, theirs = ([note for note in notes[a] if b in note[0]] for a, b in ((one, other), (other, one)))
    assert [note[:4] for note in mine] == [note[:4] for note in theirs]
    for own, their in zip(mine, theirs, strict=True):
        if own[1] == "all-to-all":
            i, j = own[0].index(one), own[0].index(other)
            assert (own[4][j], own[5][j]) == (their[5][i], their[4][i])
