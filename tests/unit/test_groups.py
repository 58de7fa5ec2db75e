"""Which ranks form which group, against the formula of a rank's number; and what is said of NCCL's errors."""

import itertools
from datetime import timedelta
from threading import Event
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from jano_dist import groups
from jano_dist.degrees import Degrees
from jano_dist.errors import PeerLost, RunError
from jano_dist.groups import failure, form_groups, lines, loss, reason

DEGREES = [Degrees(*each) for each in itertools.product((1, 2), (1, 2, 3), (1, 2, 4))]

HEAD = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, {}, NCCL version 2.29.7\n{}\n"
    "Last error:\n{}"
)
SYSTEM = (
    "unhandled system error (run with NCCL_DEBUG=INFO for details)",
    "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error. ",
)
CUDA = ("unhandled cuda error (run with NCCL_DEBUG=INFO for details)", "ncclUnhandledCudaError: Call failed.")
# What NCCL says last, and a word of what helps.
NCCL = [
    (SYSTEM, "Error while creating shared memory segment /dev/shm/nccl-fEl9Fo (size 33030528), error: No "
             "space left on device (28)", "--shm-size"),
    (SYSTEM, "Call to shm_open failed: /dev/shm/nccl-1", "--shm-size"),
    (SYSTEM, "Bootstrap : no socket interface found", "NCCL_SOCKET_IFNAME"),
    (SYSTEM, "socketPollConnect: connect to 10.0.0.3 returned Connection refused", "NCCL_SOCKET_IFNAME"),
    (SYSTEM, "Call to ibv_modify_qp failed with 110 Connection timed out", "NCCL_IB_DISABLE"),
    (CUDA, "Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 19000", "one rank for each GPU"),
    (CUDA, "Cuda failure 2 'out of memory'", "nvidia-smi"),
    (CUDA, "Cuda failure 217 'peer access is not supported between these two devices'", "NCCL_P2P_DISABLE"),
    (CUDA, "Cuda failure 35 'CUDA driver version is insufficient for CUDA runtime version'", "the driver"),
    (CUDA, "something new", "NCCL_DEBUG"),
]  # fmt: skip


@pytest.mark.parametrize("degrees", DEGREES, ids=str)
def test_a_rank_is_in_the_line_of_those_that_differ_in_that_place_only(degrees):
    cfg, kv, ulysses = degrees
    place = {
        (c * kv + k) * ulysses + u: (c, k, u)
        for c, k, u in itertools.product(range(cfg), range(kv), range(ulysses))
    }
    same = {"cfg": (1, 2), "kv": (0, 2), "ulysses": (0, 1), "sequence": (0,)}
    along = lines(degrees)
    longer = [dim for dim, degree in degrees._asdict().items() if degree > 1]
    assert list(along) == longer + (["sequence"] if {"kv", "ulysses"} <= set(longer) else [])
    for dim, ranks in along.items():
        assert sorted(itertools.chain(*ranks)) == sorted(place)
        for rank in place:
            (mine,) = [line for line in ranks if rank in line]
            alike = [other for other in place if all(place[other][i] == place[rank][i] for i in same[dim])]
            assert mine == alike


@pytest.mark.parametrize(
    ("device", "local_world", "backend", "tried"),
    [
        ("cuda", 4, None, ["world", "cfg", "kv", "ulysses", "sequence", "node"]),
        ("cuda", 1, None, ["world", "cfg", "kv", "ulysses", "sequence"]),
        ("cpu", 4, "gloo", ["world", "cfg", "kv", "ulysses", "sequence", "node"]),
    ],
)
def test_groups_of_the_host_only_are_gloos(device, local_world, backend, tried):
    """The GPUs are made up. None: what the gang has for every device, `cpu:gloo,cuda:nccl`."""
    made = {}

    def subgroups(ranks, *, timeout, backend):
        made[str(ranks)] = backend
        return str(ranks), None

    def group(*, timeout, backend):
        made["all"] = backend
        return "patient's"

    tries = mock.patch.object(groups, "_try_out")
    made_up = mock.patch.multiple(dist, new_subgroups_by_enumeration=subgroups, new_group=group)
    with made_up, tries as attempt:
        found = form_groups(
            Degrees(2, 2, 2),
            local_world=local_world,
            device=torch.device(device),
            limit=timedelta(seconds=120),
        )
    assert made.pop("all") == "gloo"
    assert set(made.values()) == {backend}
    assert found["patient"] == "patient's"
    assert [call.args[0] for call in attempt.call_args_list] == tried
    # NCCL's watchdog ends a process after all of the time-out.
    assert {call.args[3] for call in attempt.call_args_list} == {90.0}


@pytest.mark.parametrize(("kind", "last", "advice"), NCCL, ids=lambda each: str(each)[:30])
def test_ncccls_last_error_becomes_a_sentence(kind, last, advice):
    error = dist.DistBackendError(HEAD.format(*kind, last))
    said = failure(error, "ulysses", [4, 5, 6, 7])
    assert type(said) is RunError
    assert str(said).startswith(f"group ulysses (ranks 4, 5, 6, 7) cannot exchange data (NCCL: {last}): ")
    assert advice in str(said).rpartition("): ")[2]
    assert "\n" not in str(said)
    assert ". " not in str(said)


def test_many_ranks_are_counted():
    error = dist.DistBackendError(HEAD.format(*CUDA, "something new"))
    assert str(failure(error, "world", list(range(64)))).startswith("group world (64 ranks) cannot")


def test_where_nccl_lost_contact_another_rank_knows_why():
    remote = "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting."
    last = "socketProgress: Connection closed by remote peer node3<41234>"
    error = dist.DistBackendError(HEAD.format("remote process exited", remote, last))
    said = failure(error, "world", [0, 1])
    assert type(said) is PeerLost
    assert str(said) == f"contact with another rank was lost ({last})"


def test_gloos_errors_and_our_mistakes():
    gloo = RuntimeError("[/pytorch/gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:1. Again")
    assert str(loss(gloo)) == "contact with another rank was lost (Connection closed by peer [::1]:1)"
    assert type(failure(gloo, "world", [0, 1])) is PeerLost
    detail = RuntimeError("[Rank 0]: Ranks 2 failed to pass monitoredBarrier in 600000 ms")
    assert str(loss(detail)) == f"contact with another rank was lost ({detail})"
    ours = RuntimeError("shapes differ")
    assert loss(ours) is None
    assert failure(ours, "world", [0, 1]) is ours


@pytest.mark.parametrize("text", ["", "\n", "x\nLast error:\n"])
def test_an_error_that_says_nothing(text):
    assert reason(text) == ("no message" if text != "x\n" else "x")


def test_an_answer_is_not_waited_for_longer_than_agreed():
    never = Event()
    with pytest.raises(TimeoutError):
        groups._within(0.01, never.wait)
    never.set()
    assert groups._within(60, lambda: 7) == 7
    with pytest.raises(ValueError, match="boom"):
        groups._within(60, mock.Mock(side_effect=ValueError("boom")))
