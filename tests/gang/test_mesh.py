"""The collectives of a mesh on real ranks, against plain indexing; their bytes; and ranks that are gone."""

import itertools
import time
from datetime import timedelta
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from jano_dist.errors import PeerLost, UserError
from jano_dist.mesh import Mesh, Traffic
from tests.gang.harness import Leave, gang

# world -> degrees, every dimension that can be longer than one.
MESHES = [
    (2, {"cfg": 2}),
    (2, {"ulysses": 2}),
    (3, {"ulysses": 3}),
    (4, {"ulysses": 4}),
    (4, {"cfg": 2, "ulysses": 2}),
    (4, {"kv": 2, "ulysses": 2}),
]
every_mesh = pytest.mark.parametrize(("world", "degrees"), MESHES)
DTYPES, WIDTHS = (torch.float32, torch.bfloat16, torch.int64), ((), (3,), (2, 5))
DIMS = ("cfg", "kv", "ulysses", "sequence")


def line(rank, dim, *, cfg=1, kv=1, ulysses=1):
    """The ranks along a dimension through `rank`, from the formula of a rank's number."""
    at = {"cfg": rank // (kv * ulysses), "kv": rank // ulysses % kv, "ulysses": rank % ulysses}
    degrees = {"cfg": cfg, "kv": kv, "ulysses": ulysses}
    along = {name: range(degrees[name]) if name == dim else [at[name]] for name in at}
    if dim == "sequence":
        along |= {"kv": range(kv), "ulysses": range(ulysses)}
    places = itertools.product(along["cfg"], along["kv"], along["ulysses"])
    return [(c * kv + k) * ulysses + u for c, k, u in places]


def counts(world, seed):
    """counts[i][j], rows that rank i sends to rank j: uneven, many of them 0."""
    table = torch.randint(-2, 5, (world, world), generator=torch.Generator().manual_seed(seed))
    return table.clamp(min=0).tolist()


def package(source, target, length, dtype, width):
    """Rows that nobody else sends: source, target and number can be read from them."""
    tags = 1000 * source + 100 * target + torch.arange(length)
    return tags.to(dtype).view(-1, *[1] * len(width)).expand(-1, *width).contiguous()


def join(packages, dtype, width):
    return torch.cat([torch.empty(0, *width, dtype=dtype), *packages])


# What one rank does. Cases are generated from seeds on every rank alike.


def exchange(degrees):
    """Every dimension, dtype and width: what arrived, and the bytes sent."""
    mesh, results = Mesh(**degrees), {}
    for dim, seed in itertools.product(DIMS, range(9)):
        table, dtype, width = counts(mesh.world, seed), DTYPES[seed % 3], WIDTHS[seed // 3]
        ranks = line(mesh.rank, dim, **degrees)
        assert mesh.size(dim) == len(ranks)
        assert ranks[mesh.index(dim)] == mesh.rank
        sent = [table[mesh.rank][other] for other in ranks]
        received = [table[other][mesh.rank] for other in ranks]
        rows = join(
            [package(mesh.rank, to, n, dtype, width) for to, n in zip(ranks, sent, strict=True)], dtype, width
        )
        kept = rows.clone()
        mesh.take_traffic()
        arrived = mesh.all_to_all(rows, sent, received, dim)
        assert torch.equal(rows, kept)
        results[dim, seed] = arrived, mesh.take_traffic().nbytes
    return results


def gather(degrees):
    mesh, results = Mesh(**degrees), {}
    for dim, seed in itertools.product(DIMS, range(9)):
        table, dtype, width = counts(mesh.world, seed)[0], DTYPES[seed % 3], WIDTHS[seed // 3]
        lengths = [table[other] for other in line(mesh.rank, dim, **degrees)]
        rows = package(mesh.rank, 0, lengths[mesh.index(dim)], dtype, width)
        mesh.take_traffic()
        results[dim, seed] = mesh.gather_rows(rows, lengths, dim), mesh.take_traffic().nbytes
    return results


def in_flight(degrees):
    """All begun before the first is waited for, and waited for in another order."""
    mesh = Mesh(**degrees)
    begun = {}
    for dim, seed in itertools.product(DIMS, range(5)):
        table, others = counts(mesh.world, seed), line(mesh.rank, dim, **degrees)
        rows = torch.cat([package(mesh.rank, to, table[mesh.rank][to], torch.float32, (2,)) for to in others])
        received = [table[other][mesh.rank] for other in others]
        begun[dim, seed] = mesh.begin_all_to_all(rows, [table[mesh.rank][to] for to in others], received, dim)
        lengths = [table[0][other] for other in others]
        rows = package(mesh.rank, 0, table[0][mesh.rank], torch.float32, (2,))
        begun[dim, seed, "gather"] = mesh.begin_gather(rows, lengths, dim)
    return {case: begun[case].wait() for case in reversed(begun)}


def words(degrees):
    """One of each of the collectives over the world, with the bytes that it sent."""
    mesh, results = Mesh(**degrees), {}
    mesh.take_traffic()

    def note(name, value):
        results[name] = value, mesh.take_traffic().nbytes

    note("broadcast", mesh.broadcast(torch.full((5, 2), mesh.rank + 7, dtype=torch.bfloat16)))
    note("decide", mesh.decide(40 + mesh.rank, -mesh.rank, 2**40 + mesh.rank))
    note("collect", mesh.collect(torch.tensor([mesh.rank, 10.0 * mesh.rank], dtype=torch.float64)))
    note("alike", mesh.differing(bytes(32)))
    note("last differs", mesh.differing(bytes(32) if mesh.rank < mesh.world - 1 else bytes([*[0] * 31, 1])))
    note("coordinator differs", mesh.differing(bytes([mesh.is_coordinator] * 32)))
    return results, mesh.is_coordinator, mesh.record(), mesh.take_traffic()


def in_the_node(degrees, local_worlds):
    """What the first of each node says; `local_worlds`: how many ranks each rank believes its node has."""
    mesh = Mesh(**degrees, local_world=local_worlds[dist.get_rank()])
    mesh.take_traffic()
    heard = mesh.broadcast_in_node(torch.full((3,), mesh.rank, dtype=torch.int64))
    return mesh.local_world, mesh.is_node_lead, heard.tolist(), mesh.take_traffic().nbytes


def alone_in_a_gang():
    mesh = Mesh.single()
    rows = torch.arange(3)
    kept = [mesh.gather_rows(rows, [3], "ulysses"), mesh.broadcast(rows), mesh.collect(rows)[0]]
    return mesh.rank, mesh.record()["world"], all(torch.equal(one, rows) for one in kept)


def one_mesh_after_the_other():
    first = Mesh(cfg=2, ulysses=2)
    seen = [first.gather_rows(torch.tensor([first.rank]), [1, 1], "ulysses").tolist()]
    second = Mesh(ulysses=4)
    seen.append(second.gather_rows(torch.tensor([second.rank]), [1] * 4, "ulysses").tolist())
    seen.append(first.gather_rows(torch.tensor([first.rank]), [1, 1], "cfg").tolist())
    return seen


def wrong_degrees():
    with pytest.raises(UserError) as caught:
        Mesh(cfg=2, ulysses=2)
    return str(caught.value)


def wrong_counts():
    """Two rows announced, three there: our mistake, and nobody is lost."""
    mesh = Mesh(ulysses=2)
    with pytest.raises(RuntimeError) as caught:
        mesh.all_to_all(torch.zeros(3), [1, 1], [1, 1], "ulysses")
    return type(caught.value)


COLLECTIVES = {
    "all_to_all": lambda mesh: mesh.all_to_all(torch.zeros(mesh.world), *[[1] * mesh.world] * 2, "ulysses"),
    "gather_rows": lambda mesh: mesh.gather_rows(torch.zeros(2), [2] * mesh.world, "ulysses"),
    "broadcast": lambda mesh: mesh.broadcast(torch.zeros(2)),
    "decide": lambda mesh: mesh.decide(1, 2),
    "collect": lambda mesh: mesh.collect(torch.zeros(2)),
    "differing": lambda mesh: mesh.differing(bytes(32)),
    "await_everyone": lambda mesh: mesh.await_everyone(),
}


def without(gone, collective):
    """Rank `gone` leaves after a first round; what the others hear in the second."""
    mesh = Mesh(ulysses=dist.get_world_size(), timeout_seconds=600)
    COLLECTIVES[collective](mesh)
    if mesh.rank == gone:
        raise Leave
    with pytest.raises(PeerLost) as caught:
        COLLECTIVES[collective](mesh)
    raise Leave(str(caught.value))  # fail-stop, as the command line does


def with_a_silent_rank(dim, collective):
    """Rank 1 does not come until rank 0 has given up; the gang's own time-out is far longer."""
    mesh = Mesh(**{dim: 2}, timeout_seconds=2)
    bell = dist.distributed_c10d._get_default_store()
    if mesh.rank == 1:
        bell.wait(["given up"], timedelta(seconds=100))
        return None
    lengths = {"all_to_all": ([1, 1], [1, 1]), "gather_rows": ([2, 2],)}[collective]
    with pytest.raises(PeerLost) as caught:
        getattr(mesh, collective)(torch.zeros(2), *lengths, dim)
    bell.set("given up", "1")
    return str(caught.value)


def with_ranks_silent_along_every_dimension():
    """What rank 0 hears along each dimension, all at a time, while the others do not come."""
    degrees = {"cfg": {"cfg": 2, "ulysses": 2}, "kv": {"kv": 2, "ulysses": 2}}
    meshes = {name: Mesh(**each, timeout_seconds=1) for name, each in degrees.items()}
    bell = dist.distributed_c10d._get_default_store()
    if dist.get_rank() > 0:
        bell.wait(["given up"], timedelta(seconds=100))
        raise Leave
    sentences = {}
    for name, dim in (("cfg", "cfg"), ("cfg", "ulysses"), ("kv", "kv"), ("kv", "sequence")):
        lengths = [1] * meshes[name].size(dim)
        with pytest.raises(PeerLost) as caught:
            meshes[name].all_to_all(torch.zeros(len(lengths)), lengths, lengths, dim)
        sentences[dim] = str(caught.value)
    bell.set("given up", "1")
    raise Leave(sentences)


def patience(cases):
    """Seconds that each process group of each mesh waits, as torch tells."""
    told = []
    for settings in cases:
        groups = Mesh(**settings)._groups
        gloo = {name: group._get_backend(torch.device("cpu")) for name, group in groups.items()}
        told.append({name: backend.options._timeout.total_seconds() for name, backend in gloo.items()})
    return told


def timed():
    """Seconds counted on a clock that is read twice per collective; between collectives it leaps ahead."""
    now = itertools.count()
    with mock.patch("jano_dist.clock.time", SimpleNamespace(perf_counter=lambda: float(next(now)))):

        def leap():
            nonlocal now
            now = itertools.count(next(now) + 1000)

        mesh, seconds = Mesh(ulysses=2, local_world=2), []
        for collectives in (
            [],
            [lambda: mesh.decide(1)],
            [
                lambda: mesh.decide(1),
                lambda: mesh.broadcast(torch.zeros(2)),
                lambda: mesh.collect(torch.zeros(1)),
            ],
            [mesh.await_everyone, lambda: mesh.broadcast_in_node(torch.zeros(2))],
            [lambda: mesh.gather_rows(torch.zeros(1), [1, 1], "ulysses")],
            [lambda: mesh.begin_gather(torch.zeros(1), [1, 1], "ulysses").wait()],  # begun, and waited for
            [],
        ):
            mesh.take_traffic()
            for collective in collectives:
                leap()
                collective()
            leap()
            seconds.append(mesh.take_traffic().seconds)
        return seconds


def with_a_busy_rank(busy):
    """Longer than any other time-out alone with something; afterwards all is as before."""
    mesh, gang_waits = Mesh(ulysses=4, timeout_seconds=1), dist.distributed_c10d._set_pg_timeout
    mesh.take_traffic()
    gang_waits(timedelta(seconds=1))
    if mesh.rank == busy:
        time.sleep(3)
    with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as sign:
        mesh.await_everyone()
    gang_waits(timedelta(seconds=60))
    assert [call.args[0].nbytes for call in sign.call_args_list] == [1]
    return mesh.decide(mesh.rank + 5), mesh.take_traffic().nbytes


# What is expected of it.


@every_mesh
def test_all_to_all_against_plain_indexing(world, degrees):
    ranks = gang(world, exchange, degrees)
    moved = 0
    for rank, (dim, seed) in itertools.product(range(world), ranks[0]):
        arrived, nbytes = ranks[rank][dim, seed]
        table, dtype, width = counts(world, seed), DTYPES[seed % 3], WIDTHS[seed // 3]
        others = line(rank, dim, **degrees)
        wanted = join(
            [package(other, rank, table[other][rank], dtype, width) for other in others], dtype, width
        )
        assert arrived.dtype == dtype
        assert torch.equal(arrived, wanted), (rank, dim, seed)
        values = sum(table[rank][other] for other in others if other != rank) * torch.Size(width).numel()
        assert nbytes == values * dtype.itemsize
        moved += nbytes
    assert moved > 0


@every_mesh
def test_gather_rows_against_plain_indexing(world, degrees):
    ranks = gang(world, gather, degrees)
    for rank, (dim, seed) in itertools.product(range(world), ranks[0]):
        gathered, nbytes = ranks[rank][dim, seed]
        table, dtype, width = counts(world, seed)[0], DTYPES[seed % 3], WIDTHS[seed // 3]
        others = line(rank, dim, **degrees)
        wanted = join([package(other, 0, table[other], dtype, width) for other in others], dtype, width)
        assert torch.equal(gathered, wanted), (rank, dim, seed)
        values = table[rank] * (len(others) - 1) * torch.Size(width).numel()
        assert nbytes == values * dtype.itemsize


@every_mesh
def test_several_on_their_way_at_a_time(world, degrees):
    ranks = gang(world, in_flight, degrees)
    for rank, (dim, seed) in itertools.product(range(world), itertools.product(DIMS, range(5))):
        table, others = counts(world, seed), line(rank, dim, **degrees)
        packages = [package(other, rank, table[other][rank], torch.float32, (2,)) for other in others]
        assert torch.equal(ranks[rank][dim, seed], torch.cat(packages))
        packages = [package(other, 0, table[0][other], torch.float32, (2,)) for other in others]
        assert torch.equal(ranks[rank][dim, seed, "gather"], torch.cat(packages))


@every_mesh
def test_collectives_over_the_world(world, degrees):
    for rank, (results, coordinator, record, rest) in enumerate(gang(world, words, degrees)):
        assert coordinator == (rank == 0)
        assert record == {"cfg": 1, "kv": 1, "ulysses": 1, "world": world, **degrees}
        assert rest == Traffic(0, 0.0)
        others = world - 1
        value, nbytes = results["broadcast"]
        assert value.tolist() == [[7, 7]] * 5
        assert nbytes == (5 * 2 * 2 * others if coordinator else 0)
        value, nbytes = results["decide"]
        assert value == (40, 0, 2**40)
        assert nbytes == (3 * 8 * others if coordinator else 0)
        value, nbytes = results["collect"]
        assert value.tolist() == [[other, 10 * other] for other in range(world)]
        assert nbytes == 2 * 8 * others
        assert results["alike"] == ([], 32 * others)
        assert results["last differs"] == ([world - 1], 32 * others)
        assert results["coordinator differs"] == (list(range(1, world)), 32 * others)


@pytest.mark.parametrize(
    ("world", "degrees", "local_worlds", "size"),
    [
        (4, {"cfg": 2, "ulysses": 2}, [2, 2, 2, 2], 2),
        (4, {"ulysses": 4}, [4, 4, 4, 4], 4),
        (2, {"cfg": 2}, [1, 1], 1),
        (2, {"cfg": 2}, [None, None], 1),
        (4, {"ulysses": 4}, [3, 3, 3, 1], 1),  # uneven nodes: every rank for itself
        (3, {"ulysses": 3}, [2, 2, 2], 1),
    ],
)
def test_the_first_of_a_node_speaks_to_its_node(world, degrees, local_worlds, size):
    for rank, answer in enumerate(gang(world, in_the_node, degrees, local_worlds)):
        lead = rank // size * size
        nbytes = 3 * 8 * (size - 1) if rank == lead else 0
        assert answer == (size, rank == lead, [lead] * 3, nbytes)


def test_a_single_mesh_in_a_gang_moves_nothing():
    assert gang(2, alone_in_a_gang) == [(0, 1, True)] * 2


def test_two_meshes_over_the_same_ranks():
    for rank, seen in enumerate(gang(4, one_mesh_after_the_other)):
        assert seen == [[0, 1] if rank < 2 else [2, 3], [0, 1, 2, 3], [rank % 2, rank % 2 + 2]]


def test_degrees_that_do_not_multiply_to_the_ranks():
    for sentence in gang(3, wrong_degrees):
        assert "is 4 ranks, but 3 were started" in sentence


def test_a_mistake_of_ours_is_no_lost_rank():
    assert gang(2, wrong_counts) == [RuntimeError] * 2


@pytest.mark.parametrize(
    ("world", "gone", "collective"),
    [
        (2, 1, "all_to_all"),
        (2, 0, "all_to_all"),
        (3, 2, "all_to_all"),
        (4, 1, "gather_rows"),
        (2, 0, "broadcast"),
        (4, 0, "decide"),
        (3, 1, "collect"),
        (4, 3, "differing"),
        (3, 0, "await_everyone"),
    ],
)
def test_a_rank_that_has_left(world, gone, collective):
    """The others hear of it at once: the harness would end them long before the mesh's 600 seconds."""
    sentences = gang(world, without, gone, collective, timeout=60, collective_timeout=600)
    assert sentences.pop(gone) is None
    for sentence in sentences:
        assert sentence.startswith("contact with another rank was lost (")
        assert "\n" not in sentence


@pytest.mark.parametrize(
    ("dim", "collective"),
    [("ulysses", "all_to_all"), pytest.param("cfg", "gather_rows", marks=pytest.mark.slow)],
)
def test_a_rank_that_is_silent_for_longer_than_the_meshs_timeout(dim, collective):
    sentence, _ = gang(2, with_a_silent_rank, dim, collective, timeout=60, collective_timeout=600)
    assert sentence.startswith("contact with another rank was lost (")
    assert "timed out" in sentence.lower()


def test_every_dimension_has_the_meshs_timeout():
    """The gang's is far longer, and torch's own 30 minutes: the harness would end the ranks before."""
    sentences = gang(4, with_ranks_silent_along_every_dimension, timeout=40, collective_timeout=600)[0]
    assert set(sentences) == {"cfg", "ulysses", "kv", "sequence"}
    for sentence in sentences.values():
        assert sentence.startswith("contact with another rank was lost (")
        assert "timed out" in sentence.lower()


def test_patience_with_what_a_rank_does_alone_is_an_hour_at_least():
    """Every group has the mesh's time-out, but for the two that wait for slow disks."""
    cases = [
        {"cfg": 2, "ulysses": 2, "local_world": 2, "timeout_seconds": 7},
        {"kv": 2, "ulysses": 2, "timeout_seconds": 7},
        {"ulysses": 4, "local_world": 4, "timeout_seconds": 5000},
    ]
    wanted = [
        {**dict.fromkeys(("cfg", "ulysses", "sequence"), 7), "patient": 3600, "node": 3600},
        {**dict.fromkeys(("kv", "ulysses", "sequence"), 7), "patient": 3600},
        dict.fromkeys(("ulysses", "sequence", "patient", "node"), 5000),
    ]
    world = {"decode": 60}  # so few ranks decode in the group of all, which is the gang's
    assert gang(4, patience, cases, collective_timeout=60) == [[case | world for case in wanted]] * 4


def test_the_clock_counts_collectives_and_nothing_between_them():
    assert gang(2, timed) == [[0, 1, 3, 2, 1, 2, 0]] * 2


@pytest.mark.parametrize("busy", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_a_busy_rank_is_waited_for(busy):
    """The sign that each has come is a byte to the three others; the decision 8 from the coordinator."""
    decided = [((5,), 3 + 3 * 8), *[((5,), 3)] * 3]
    assert gang(4, with_a_busy_rank, busy, collective_timeout=600) == decided
