"""Degrees that fit, and a mesh of one process. Real ranks: tests/gang."""

import itertools
import re
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from jano_dist.clock import Clock, Span, SpanClock
from jano_dist.config import MeshConfig
from jano_dist.degrees import Degrees, choose_degrees, explain_degrees
from jano_dist.errors import UserError
from jano_dist.mesh import Mesh, Traffic

WORLDS, HEADS, ASKED = range(1, 17), (1, 6, 12, 40), (None, 1, 2, 3, 4, 8)


def fits(cfg, kv, ulysses, *, world, heads, guided):
    """Written down a second time: all ranks at work, whole heads, two branches only where there are two."""
    return cfg * kv * ulysses == world and heads % ulysses == 0 and (cfg == 1 or (cfg == 2 and guided))


def all_meshes(**facts):
    """CFG first, then as much Ulysses as the heads allow."""
    triples = itertools.product((2, 1), range(1, 17), range(1, 17))
    meshes = [triple for triple in triples if fits(*triple, **facts)]
    return sorted(meshes, key=lambda mesh: (-mesh[0], -mesh[2]))


def every_case():
    return itertools.product(WORLDS, HEADS, (True, False), (None, 1, 2), ASKED)


@pytest.mark.parametrize(
    ("world", "heads", "guided", "degrees"),
    [
        (1, 40, True, (1, 1, 1)),
        (2, 40, True, (2, 1, 1)),
        (2, 40, False, (1, 1, 2)),
        (3, 6, True, (1, 1, 3)),
        (4, 12, True, (2, 1, 2)),
        (4, 12, False, (1, 1, 4)),
        (5, 40, True, (1, 1, 5)),
        (6, 6, True, (2, 1, 3)),
        (6, 6, False, (1, 1, 6)),
        (8, 12, True, (2, 1, 4)),
        (8, 40, True, (2, 1, 4)),
        (8, 40, False, (1, 1, 8)),
        (16, 40, True, (2, 1, 8)),
        (7, 40, True, (1, 7, 1)),
        (12, 40, True, (2, 3, 2)),
        (16, 12, True, (2, 2, 4)),
    ],
)
def test_cfg_first_then_ulysses(world, heads, guided, degrees):
    assert choose_degrees(MeshConfig(), world=world, heads=heads, guided=guided) == degrees


@pytest.mark.parametrize(
    ("asked", "degrees"),
    [
        ({"cfg": 1}, (1, 1, 4)),
        ({"cfg": 2}, (2, 1, 2)),
        ({"ulysses": 4}, (1, 1, 4)),
        ({"ulysses": 2}, (2, 1, 2)),
        ({"cfg": 1, "ulysses": 4}, (1, 1, 4)),
    ],
)
def test_what_is_asked_for_is_given(asked, degrees):
    assert choose_degrees(MeshConfig(**asked), world=4, heads=12, guided=True) == degrees


def test_every_case_against_all_meshes_there_are():
    chosen = refused = 0
    for world, heads, guided, cfg, ulysses in every_case():
        wanted = [
            mesh
            for mesh in all_meshes(world=world, heads=heads, guided=guided)
            if cfg in (None, mesh[0]) and ulysses in (None, mesh[2])
        ]
        asked = MeshConfig(cfg=cfg, ulysses=ulysses)
        if wanted:
            degrees = choose_degrees(asked, world=world, heads=heads, guided=guided)
            assert degrees == Degrees(*wanted[0])
            chosen += 1
        else:
            with pytest.raises(UserError):
                choose_degrees(asked, world=world, heads=heads, guided=guided)
            refused += 1
    assert chosen > 100
    assert refused > 100


def test_what_the_sentence_offers_is_all_that_works():
    for world, heads, guided, cfg, ulysses in every_case():
        try:
            choose_degrees(MeshConfig(cfg=cfg, ulysses=ulysses), world=world, heads=heads, guided=guided)
            continue
        except UserError as error:
            sentence = str(error)
        problem, advice = sentence.split(": ")
        assert f"{world} rank" in problem
        assert f"{heads} heads" in problem
        for name, degree in (("cfg", cfg), ("ulysses", ulysses)):
            assert (f"--{name} {degree}" in problem) == (degree is not None)
        offered = re.findall(r"--cfg (\d+) --kv (\d+) --ulysses (\d+)", advice)
        meshes = all_meshes(world=world, heads=heads, guided=guided)
        assert [tuple(map(int, mesh)) for mesh in offered] == meshes, sentence


@pytest.mark.parametrize(
    ("world", "local_world", "heads", "hidden", "degrees"),
    [
        (16, 8, 40, False, (2, 1, 8)),  # a branch per node
        (32, 8, 40, False, (2, 2, 8)),  # two nodes per branch: queries cross, not heads
        (8, 2, 40, False, (2, 2, 2)),
        (8, 8, 40, True, (2, 4, 1)),  # K/V made again: they need no exchange if they stay
        (6, 3, 40, False, (2, 3, 1)),
    ],
)
def test_between_nodes_as_little_as_can_be(world, local_world, heads, hidden, degrees):
    facts = {"world": world, "heads": heads, "guided": True}
    assert choose_degrees(MeshConfig(), local_world=local_world, hidden=hidden, **facts) == degrees


@pytest.mark.parametrize("degrees", [{"cfg": 2}, {"ulysses": 2}, {"kv": 3}, {"cfg": 2, "ulysses": 3}])
def test_degrees_that_do_not_multiply_to_the_ranks(degrees):
    with pytest.raises(UserError, match="1 were started"):
        Mesh(**degrees)


def test_one_process_moves_nothing():
    mesh, rows = Mesh(), torch.arange(12.0).view(4, 3)
    kept = rows.clone()
    assert mesh.is_coordinator
    assert mesh.record() == {"cfg": 1, "kv": 1, "ulysses": 1, "world": 1}
    for dim in ("cfg", "kv", "ulysses", "sequence"):
        assert (mesh.size(dim), mesh.index(dim)) == (1, 0)
        assert torch.equal(mesh.all_to_all(rows, [4], [4], dim), kept)
        assert torch.equal(mesh.gather_rows(rows, [4], dim), kept)
    assert torch.equal(mesh.broadcast(rows), kept)
    assert mesh.decide(3, 1, 4) == (3, 1, 4)
    assert torch.equal(mesh.collect(rows), kept[None])
    assert mesh.differing(b"anything") == []
    assert torch.equal(rows, kept)
    assert mesh.take_traffic() == Traffic(0, 0.0)


def test_a_single_mesh_is_this_process_alone():
    assert Mesh.single().record() == Mesh().record()
    assert Mesh.single().device == torch.device("cpu")
    assert Mesh.single(torch.device("meta")).device == torch.device("meta")


def test_the_clock_of_a_gpu_reads_events():
    """The GPU is made up. Its events know their times, in milliseconds, once it has been waited for."""
    times, done = iter([5.0, 7.0, 100.0, 140.0]), []

    class Event:
        def __init__(self, *, enable_timing):
            assert enable_timing is True

        def record(self):
            self.at = next(times)

        def elapsed_time(self, end):
            assert done
            return end.at - self.at

    with mock.patch.multiple(torch.cuda, Event=Event, synchronize=lambda: done.append(True)):
        clock = Clock(torch.device("cuda"))
        for _ in range(2):
            clock.start()
            clock.stop()
        assert clock.take() == (2 + 40) / 1000
        assert clock.take() == 0


def test_spans_of_a_gpu_on_the_hosts_clock():
    """A made-up GPU whose clock began 101 s after the host's and runs faster. The two are compared at every
    look, so a span is off by no more than what it has run ahead since the last."""
    host = itertools.count(101.0)  # seconds; later by one at every look
    gpu = {"now": 0.0}  # milliseconds

    class Event:
        def __init__(self, *, enable_timing):
            pass

        def record(self):
            self.at = gpu["now"]

        def elapsed_time(self, end):
            return end.at - self.at

    def wait():
        gpu["now"] += 2000.0

    clocks = SimpleNamespace(perf_counter=lambda: next(host))
    with (
        mock.patch.multiple(torch.cuda, Event=Event, synchronize=lambda: None),
        mock.patch("jano_dist.clock.time", clocks),
    ):
        clock = SpanClock(torch.device("cuda"))  # at 0 ms the host says 101 s
        for name in ("broadcast", "collect"):
            gpu["now"] += 250
            clock.start()
            gpu["now"] += 500
            clock.stop((name, "x"), 7)
        assert clock.take() == 1.0
        wait()
        clock.start()
        clock.stop()
        spans = clock.take_spans()
        assert clock.take_spans() == []
    # The second look: at 1500 ms the host says 102 s.
    assert spans == [
        Span("broadcast x", 101.25, 101.75, 7),
        Span("collect x", 102.0, 102.5, 7),
        Span("", 104.0, 104.0, 0),
    ]


def test_no_timing_events_on_a_gpu_unless_asked():
    made = []

    class Event(SimpleNamespace):
        def __init__(self, **_):
            made.append(self)

        def record(self):
            return

        def elapsed_time(self, other):
            return 500.0

    mesh = Mesh.single(torch.device("cuda"))
    with mock.patch.multiple(torch.cuda, Event=Event, synchronize=lambda: None):
        with mesh._counted(7, "broadcast"):
            pass
        assert (mesh.take_traffic(), made) == (Traffic(7, None), [])
        mesh.time_collectives()
        with mesh._counted(8, "broadcast"):
            pass
        assert (mesh.take_traffic(), len(made)) == (Traffic(8, 0.5), 2)
        mesh.time_collectives()  # asked twice
        assert mesh.take_traffic() == Traffic(0, 0.0)
        other = Mesh.single(torch.device("cuda"))
        other.keep_spans()
        with other._counted(9, "collect"):
            pass
        assert other.take_traffic().seconds == 0.5


@pytest.mark.parametrize(
    ("world", "asked", "words"),
    [
        (2, {}, "2 ranks: cfg 2 x kv 1 x ulysses 1, chosen from 3 possible meshes because its ranks send "
                "nothing to each other inside the transformer"),
        # Per rank and layer of a branch: Ulysses 4 sends 4/4 * 3/4 of the computed rows, kv 2 x ulysses 2
        # sends 4/4 * 1/2 + 2/4 * 1.
        (8, {"cfg": 2}, "ulysses 4, chosen from 3 possible meshes because its ranks send least; "
                        "cfg 2 x kv 2 x ulysses 2, the next best, would send 1.3 times as much"),
        (8, {"cfg": 2, "kv": 4}, "8 ranks: cfg 2 x kv 4 x ulysses 1, as asked"),
        (1, {}, "1 rank: cfg 1 x kv 1 x ulysses 1, the only possible mesh"),
    ],
)  # fmt: skip
def test_the_choice_is_explained(world, asked, words):
    facts = {"heads": 12, "guided": True, "local_world": world, "hidden": False}
    asked = MeshConfig(**asked)
    degrees = choose_degrees(asked, world=world, **facts)
    assert words in explain_degrees(degrees, asked, **facts)
