"""Groups tried out by real ranks: what goes well, and what is said where it does not."""

from datetime import timedelta
from unittest import mock

import pytest
import torch.distributed as dist

from jano_dist.errors import PeerLost, RunError
from jano_dist.mesh import Mesh
from tests.gang.harness import Leave, gang

NCCL = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled system error (run with "
    "NCCL_DEBUG=INFO for details), NCCL version 2.29.7\nncclSystemError: System call failed. \nLast error:\n"
    "Error while creating shared memory segment /dev/shm/nccl-1 (size 9637888)"
)


def tried(degrees, local_world):
    """What is sent while the mesh is formed: each collective, with the ranks it is over."""
    seen = []

    def noting(name, call):
        def noted(*arguments, group=None, **keywords):
            seen.append((name, tuple(dist.get_process_group_ranks(group or dist.group.WORLD))))
            return call(*arguments, group=group, **keywords)

        return mock.patch.object(dist, name, noted)

    with noting("broadcast", dist.broadcast), noting("all_to_all_single", dist.all_to_all_single):
        mesh = Mesh(**degrees, local_world=local_world)
    return seen, mesh.take_traffic()


def failing_in(name, effect):
    """Rank 0's sentence where a collective of the try-out goes wrong, and its kind."""
    rank = dist.get_rank()
    with mock.patch.object(dist, name, effect), pytest.raises(RunError) as caught:
        Mesh(cfg=2, ulysses=2, timeout_seconds=600)
    raise Leave((rank, type(caught.value).__name__, str(caught.value)))


def with_nccls_error():
    def fails(*_, **__):
        dist.barrier()  # all ranks have come this far
        raise dist.DistBackendError(NCCL)

    failing_in("all_to_all_single", fails)


def with_wrong_numbers():
    real = dist.all_to_all_single

    def garbled(result, rows, **keywords):
        dist.barrier()
        real(result, rows, **keywords)
        result[-1] += 1

    failing_in("all_to_all_single", garbled)


def with_a_silent_rank():
    """Rank 1 has formed its groups and comes to no exchange."""
    bell, real = dist.distributed_c10d._get_default_store(), dist.broadcast

    def waits(*arguments, **keywords):
        if dist.get_rank() == 1:
            bell.wait(["given up"], timedelta(seconds=100))
            raise Leave
        return real(*arguments, **keywords)

    with mock.patch.object(dist, "broadcast", waits), pytest.raises(RunError) as caught:
        Mesh(ulysses=2, timeout_seconds=2)
    bell.set("given up", "1")
    raise Leave((type(caught.value).__name__, str(caught.value)))


def with_a_rank_that_ends():
    real = dist.broadcast

    def ends(*arguments, **keywords):
        if dist.get_rank() == 2:
            raise Leave
        return real(*arguments, **keywords)

    with mock.patch.object(dist, "broadcast", ends), pytest.raises(PeerLost) as caught:
        Mesh(ulysses=3, timeout_seconds=600)
    raise Leave(str(caught.value))


def with_contact_lost_while_groups_are_formed():
    """As gloo says it where a peer ends before all are connected."""
    lost = RuntimeError(
        "Gloo connectFullMesh failed with [/pytorch/third_party/gloo/transport/tcp/pair.cc:553] Connection "
        "closed by peer [127.0.0.1]:58527. This is typically caused by a remote worker crashing."
    )
    with mock.patch.object(dist, "new_group", side_effect=lost), pytest.raises(PeerLost) as caught:
        Mesh(ulysses=2)
    return str(caught.value)


@pytest.mark.parametrize(
    ("degrees", "local_world", "wanted"),
    [
        # On rank 0. As it will be used: broadcasts over the world and the node, rows along dimensions.
        ({"cfg": 2, "ulysses": 2}, 2, [("broadcast", (0, 1, 2, 3)), ("all_to_all_single", (0, 2)),
                                       ("all_to_all_single", (0, 1)), ("broadcast", (0, 1))]),
        ({"kv": 2, "ulysses": 2}, 1, [("broadcast", (0, 1, 2, 3)), ("all_to_all_single", (0, 2)),
                                      ("all_to_all_single", (0, 1)), ("all_to_all_single", (0, 1, 2, 3))]),
        ({"kv": 4}, 4, [("broadcast", (0, 1, 2, 3)), ("all_to_all_single", (0, 1, 2, 3)),
                        ("broadcast", (0, 1, 2, 3))]),
        ({"kv": 4, "decoders": 2}, 1, [("broadcast", (0, 1, 2, 3)), ("all_to_all_single", (0, 1, 2, 3)),
                                       ("broadcast", (0, 1))]),
    ],
)  # fmt: skip
def test_every_group_that_will_be_used_is_tried_once(degrees, local_world, wanted):
    ranks = gang(4, tried, degrees, local_world)
    assert ranks[0][0] == wanted
    for rank, (seen, traffic) in enumerate(ranks):
        if rank < degrees.get("decoders", 4):  # the others have no part in decoding
            assert [name for name, _ in seen] == [name for name, _ in wanted]
        assert all(rank in group for _, group in seen)
        assert traffic.nbytes == 3 * 8  # of the agreement on ranks per node, and nothing else


def test_nccls_last_error_and_the_group_are_named():
    """The error is made up; the ranks and their groups are real."""
    for rank, kind, sentence in gang(4, with_nccls_error):
        assert kind == "RunError"
        assert sentence.startswith(
            f"group cfg (ranks {rank % 2}, {rank % 2 + 2}) cannot exchange data (NCCL: Error while creating "
            "shared memory segment /dev/shm/nccl-1 (size 9637888)): give the container more shared memory"
        )


def test_numbers_that_arrive_changed():
    for rank, kind, sentence in gang(4, with_wrong_numbers):
        assert kind == "RunError"
        assert sentence.startswith(f"group cfg (ranks {rank % 2}, {rank % 2 + 2}) received other numbers")


def test_a_rank_that_does_not_come_is_not_waited_for_longer_than_the_timeout():
    kind, sentence = gang(2, with_a_silent_rank, collective_timeout=600)[0]
    assert kind == "RunError"
    assert sentence == (
        "group world (ranks 0, 1) exchanged nothing within 1.5 s: set GLOO_SOCKET_IFNAME to the network "
        "interface that the ranks share"
    )


def test_a_rank_that_ends_is_noticed_at_once():
    sentences = gang(3, with_a_rank_that_ends, timeout=60, collective_timeout=600)
    assert sentences.pop(2) is None
    for sentence in sentences:
        assert sentence.startswith("contact with another rank was lost (")


def test_contact_lost_while_groups_are_formed():
    for sentence in gang(2, with_contact_lost_while_groups_are_formed):
        assert sentence == (
            "contact with another rank was lost (Connection closed by peer [127.0.0.1]:58527)"
        )
