"""Branches of a rank that take turns while their rows travel: the same latents, bit by bit."""

from functools import partial
from itertools import count
from unittest import mock

import pytest
import torch

from jano_dist import Engine, load_config
from jano_dist.degrees import Degrees
from jano_dist.mesh import Mesh, Pending
from jano_dist.observe import NullObserver
from jano_dist.turns import Turns
from tests.gang.harness import gang
from tests.gang.maps import FollowMap

SIZES = (6, 9, 20)  # active, moderate, static of 35 tokens
KINDS = ("full", "refresh", "active", "moderate", "active", "full")
LAYERS, BRANCHES = 6, 2


def config(split, **own):
    overrides = {"video.frames": 1, "video.height": 80, "video.width": 112, "sampling.steps": len(KINDS)}
    overrides |= {f"mesh.{dim}": degree for dim, degree in Degrees(*split)._asdict().items()}
    overrides |= {"model.vae_parallel": "single", **own}
    return load_config("wan-tiny", policy="full", overrides=overrides)


class Watching(NullObserver):
    """How often a turn was passed on, and how many exchanges were on their way at once, in each step."""

    def __init__(self):
        self.steps, self.passed, self.under_way, self.most = [], 0, 0, 0

    def step(self, record, steps):
        self.steps.append((self.passed, self.most))
        self.passed = self.most = 0


def watched(engine):
    """The latents of one generation, and what was seen in each of its steps."""
    seen, pass_on, begin, wait = Watching(), Turns.pass_on, Mesh.begin_all_to_all, Pending.wait

    def passing(turns):
        seen.passed += 1
        pass_on(turns)

    def beginning(mesh, rows, sent, received, dim):
        seen.under_way += mesh.size(dim) > 1
        seen.most = max(seen.most, seen.under_way)
        return begin(mesh, rows, sent, received, dim)

    def waiting(pending):
        seen.under_way -= pending._work is not None
        return wait(pending)

    with (
        mock.patch.object(Turns, "pass_on", passing),
        mock.patch.object(Mesh, "begin_all_to_all", beginning),
        mock.patch.object(Pending, "wait", waiting),
    ):
        return engine.generate("a red ball moves left", seed=1, observer=seen).latents, seen.steps


def with_and_without(split, kind):
    """On this rank: with turns, without them, and with a cache in 8 bits, whose layers share buffers."""
    engine = Engine(config(split, **{"cache.kind": kind}), policies=FollowMap(*SIZES, KINDS))
    latents, steps = watched(engine)
    engine.model.overlaps = False
    plain, none = watched(engine)
    engine.model.overlaps = True
    eight = Engine(
        config(split, **{"cache.kind": kind, "cache.dtype": "fp8"}),
        model=engine.model,
        mesh=engine.mesh,
        policies=FollowMap(*SIZES, KINDS),
    )
    shared, _ = watched(eight)
    eight.model.overlaps = False
    return torch.equal(latents, plain), steps, none, torch.equal(shared, watched(eight)[0])


@pytest.mark.parametrize(
    ("split", "kind"), [((1, 1, 2), "kv"), ((1, 2, 1), "kv"), ((1, 2, 1), "hidden"), ((1, 1, 3), "hidden")]
)
def test_the_same_bits(split, kind):
    for same, steps, none, same_in_8_bits in gang(split[1] * split[2], with_and_without, split, kind):
        assert same
        assert same_in_8_bits
        # With hidden states and Ulysses queries go on their own, beside keys and values of all rows.
        exchanges = 3 if kind == "hidden" and split[2] > 1 else 2
        for step, (passed, most) in zip(KINDS, steps, strict=True):
            assert passed == (BRANCHES * LAYERS * exchanges if step in ("active", "moderate") else 0)
            if step in ("active", "moderate"):
                assert most == BRANCHES  # both branches' rows travel at once
        assert {passed for passed, _ in none} == {0}


def broken(split):
    """What a failure in either branch's forward becomes."""
    engine = Engine(config(split), policies=FollowMap(*SIZES, KINDS))
    forward, told = engine.model.forward, []
    for fails in range(BRANCHES):
        failing = partial(_failing, forward, fails, count())
        with mock.patch.object(engine.model, "forward", failing):
            try:
                engine.generate("a red ball moves left", seed=1)
            except ValueError as error:
                told.append(str(error))
    return told, engine.generate("a red ball moves left", seed=1).latents


def _failing(forward, fails, calls, latent, timestep, branch, rows, cache, attend, text_rows):
    branch_index, few = next(calls) % BRANCHES, len(rows) < 10

    def attended(*qkv, **rest):
        if few and branch_index == fails:
            raise ValueError(f"boom {fails}")
        return attend(*qkv, **rest)

    return forward(latent, timestep, branch, rows, cache, attended, text_rows)


def test_a_failure_in_either_branch_is_said_and_leaves_nothing_behind():
    (told, latents), (others, same) = gang(2, broken, (1, 1, 2))
    assert told == others == ["boom 0", "boom 1"]
    undisturbed, _ = gang(2, generated, (1, 1, 2))
    assert torch.equal(latents, undisturbed)
    assert torch.equal(same, undisturbed)


def generated(split):
    engine = Engine(config(split), policies=FollowMap(*SIZES, KINDS))
    return engine.generate("a red ball moves left", seed=1).latents
