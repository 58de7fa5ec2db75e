"""The collectives that predicted seconds rest on: as many as real ranks take part in."""

from collections import Counter
from unittest import mock

import pytest

from jano_dist import Engine, load_config
from jano_dist.account.work import collectives
from jano_dist.degrees import Degrees
from jano_dist.mesh import Mesh
from jano_dist.models.sizes import read_sizes
from jano_dist.observe import NullObserver
from tests.gang.harness import gang
from tests.gang.maps import FollowMap

SIZES = (6, 12, 17)  # active, moderate, static of 35 tokens
KINDS = ("full", "refresh", "moderate", "active")
ROWS = {"full": 35, "refresh": 35, "moderate": 18, "active": 6}


class PerStep(NullObserver):
    """What `calls` counted in each step."""

    def __init__(self, calls):
        self.steps, self._calls = [], calls

    def step(self, record, steps):
        self.steps.append(dict(self._calls))
        self._calls.clear()


def config(split, kind):
    overrides = {"video.frames": 1, "video.height": 80, "video.width": 112, "sampling.steps": len(KINDS)}
    overrides |= {"cache.kind": kind, "model.vae_parallel": "single"}
    overrides |= {f"mesh.{dim}": degree for dim, degree in Degrees(*split)._asdict().items()}
    return load_config("wan-tiny", policy="full", overrides=overrides)


def counted(split):
    """Collectives of each step by dimension, for both kinds of cache."""
    calls, exchange, found = Counter(), Mesh._exchange, {}

    def counting(mesh, rows, sent, received, dim, **when):
        calls[dim] += 1
        return exchange(mesh, rows, sent, received, dim, **when)

    for kind in ("kv", "hidden"):
        engine = Engine(config(split, kind), policies=FollowMap(*SIZES, KINDS))
        observer = PerStep(calls)
        with mock.patch.object(Mesh, "_exchange", counting):
            calls.clear()
            engine.generate("a red ball moves left", seed=1, observer=observer)
        found[kind] = observer.steps
    return found


@pytest.mark.parametrize(
    "split", [(2, 1, 1), pytest.param((1, 2, 2), marks=pytest.mark.slow), pytest.param((1, 1, 2))]
)
def test_collectives_of_a_step(split):
    sizes, degrees = read_sizes("wan-tiny", local=True), Degrees(*split)
    for steps in gang(int(degrees.cfg * degrees.kv * degrees.ulysses), counted, split):
        for cache, each in steps.items():
            for kind, calls in zip(KINDS, each, strict=True):
                wanted = collectives(sizes, config(split, cache), degrees, ROWS[kind], "cpu")
                assert calls.get("ulysses", 0) == wanted.ulysses
                assert calls.get("kv", 0) == wanted.kv
                assert calls.get("cfg", 0) + calls.get("sequence", 0) == wanted.output
