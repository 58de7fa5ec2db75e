"""The process groups of a mesh: formed with it, tried out at once, and what is said where one does not work.

Left to itself NCCL connects GPUs at their first exchange. A set-up in which they cannot be connected (a
container's shared memory, the network interface) would show minutes after the start, and the 1 to 4 GB that
NCCL takes on every GPU would be taken after we have looked at what is free.
"""

import math
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from threading import Thread
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from jano_dist.degrees import DIMS, Degrees
from jano_dist.errors import PeerLost, RunError, count, name_ranks

T = TypeVar("T")

# How long ranks wait for what one of them does alone: a slow disk takes many minutes for the weights.
_ALONE = timedelta(hours=1)
# Of the time-out, how long a group is tried out: NCCL's watchdog ends the process when all of it is over.
_SHARE = 0.75
_FEW = 8  # ranks that a sentence names one by one
DECODERS = 8  # ranks that decode together: published, there is no gain beyond (docs/decisions.md)
_RINGED = ("world", "node", "decode")  # groups that broadcast, gather and reduce

# What NCCL's last error has in it, and what helps. The first that fits is said.
_REMEDIES = (
    ("duplicate gpu", "start one rank for each GPU"),
    ("shared memory", "give the container more shared memory, such as --shm-size=8g or --ipc=host"),
    ("/dev/shm", "give the container more shared memory, such as --shm-size=8g or --ipc=host"),
    ("memory", "look with nvidia-smi for what else lies on the GPUs, and end it"),
    ("driver version", "update the driver, or use a PyTorch that is built for it"),
    ("ibv_", "look at the InfiniBand adapters with ibv_devinfo, or do without them by NCCL_IB_DISABLE=1"),
    ("net/ib", "look at the InfiniBand adapters with ibv_devinfo, or do without them by NCCL_IB_DISABLE=1"),
    ("socket", "set NCCL_SOCKET_IFNAME to the network interface that the ranks share"),
    ("connect", "set NCCL_SOCKET_IFNAME to the network interface that the ranks share"),
    ("peer access", "set NCCL_P2P_DISABLE=1, with which GPUs of a node talk by way of host memory"),
    ("ipc", "set NCCL_P2P_DISABLE=1, with which GPUs of a node talk by way of host memory"),
    ("cumem", "set NCCL_CUMEM_ENABLE=0"),
)
_ELSE = "start again with NCCL_DEBUG=WARN, which says more"
_NO_ANSWER = {
    "cpu": "set GLOO_SOCKET_IFNAME to the network interface that the ranks share",
    "cuda": "start again with NCCL_DEBUG=INFO to see where they wait, and try NCCL_P2P_DISABLE=1 if the GPUs "
    "of a node cannot reach each other's memory, or NCCL_SOCKET_IFNAME if they take the wrong network",
}


def lines(degrees: Degrees) -> dict[str, list[list[int]]]:
    """The ranks along each dimension that has more than one; `sequence` where it is no other dimension."""
    ranks = torch.arange(math.prod(degrees)).reshape(degrees)
    along = {
        dim: ranks.movedim(axis, -1).flatten(0, -2).tolist()
        for axis, dim in enumerate(DIMS)
        if degrees[axis] > 1
    }
    if degrees.kv > 1 and degrees.ulysses > 1:
        along["sequence"] = ranks.flatten(1).tolist()
    return along


def form_groups(
    degrees: Degrees, *, local_world: int, device: torch.device, limit: timedelta, decoders: int = DECODERS
) -> dict[str, Any]:
    """This rank's groups by name. All ranks call it together.

    All but `patient`, which carries only the host's tensors, are tried out. It and `node` wait longest.

    Args:
        limit: how long an exchange waits for the others. Given here because groups do not inherit it.
        decoders: where there are more ranks, so many of the first have a group `decode` (None on the others),
            which is that of all ranks otherwise.

    Raises:
        RunError: a group cannot exchange anything; the sentence names it and says why.
    """
    # On a GPU a group has both: gloo for the host's tensors, NCCL for the device's.
    backend = "gloo" if device.type == "cpu" else None
    used = {
        dim: dist.new_subgroups_by_enumeration(ranks, timeout=limit, backend=backend)[0]
        for dim, ranks in lines(degrees).items()
    }
    if math.prod(degrees) > decoders:
        first = [list(range(decoders))]
        used["decode"] = dist.new_subgroups_by_enumeration(first, timeout=limit, backend=backend)[0]
    patience = max(limit, _ALONE)
    if local_world > 1:
        nodes = torch.arange(math.prod(degrees)).view(-1, local_world).tolist()
        used["node"] = dist.new_subgroups_by_enumeration(nodes, timeout=patience, backend=backend)[0]
    own = {name: group for name, group in used.items() if group is not None}
    for name, group in {"world": dist.group.WORLD, **own}.items():
        _try_out(name, group, device, _SHARE * limit.total_seconds())
    used.setdefault("sequence", used.get("kv") or used.get("ulysses"))
    used.setdefault("decode", dist.group.WORLD)
    return {**used, "patient": dist.new_group(timeout=patience, backend="gloo")}


def loss(error: RuntimeError) -> PeerLost | None:
    """What a collective's error means if it is not a mistake of ours: a rank that is gone or silent."""
    # The second is what gloo's ranks meet at before each exchange with TORCH_DISTRIBUTED_DEBUG=DETAIL.
    said = any(sign in str(error) for sign in ("gloo", "monitoredBarrier"))
    if not (said or isinstance(error, dist.DistError)):
        return None
    return PeerLost(f"contact with another rank was lost ({reason(str(error))})")


def reason(text: str) -> str:
    """The telling line of a collective's error: NCCL's last error, or what gloo says first."""
    _, found, last = text.partition("Last error:\n")
    first = ((last if found else text).strip() or "no message").splitlines()[0]
    return (first if found else first.rpartition("] ")[2]).partition(". ")[0]


def failure(error: RuntimeError, name: str, ranks: list[int]) -> RuntimeError | RunError:
    """What is raised where a group's first exchange raised `error`.

    Where NCCL lost contact, it is another rank that knows why.
    """
    text = str(error)
    if "NCCL" not in text or "ncclRemoteError" in text:
        return loss(error) or error
    why = reason(text)
    remedy = next((what for sign, what in _REMEDIES if sign in why.lower()), _ELSE)
    return RunError(f"{_whose(name, ranks)} cannot exchange data (NCCL: {why}): {remedy}")


def _try_out(name: str, group: Any, device: torch.device, seconds: float) -> None:
    """One small exchange of the kind that the group is for: other kinds have connections of their own."""
    ranks = dist.get_process_group_ranks(group)
    own = torch.tensor([dist.get_rank()], device=device)

    def exchange() -> list[int]:
        if name in _RINGED:
            dist.broadcast(own, group=group, group_src=0)
            return own.tolist() * len(ranks)
        heard = own.repeat(len(ranks))
        dist.all_to_all_single(heard, heard.clone(), group=group)
        return heard.tolist()  # waits for the device

    try:
        heard = _within(seconds, exchange)
    except TimeoutError as error:
        advice = _NO_ANSWER["cpu" if device.type == "cpu" else "cuda"]
        raise RunError(f"{_whose(name, ranks)} exchanged nothing within {seconds:g} s: {advice}") from error
    except RuntimeError as error:
        raise failure(error, name, ranks) from error
    if heard != (ranks[:1] * len(ranks) if name in _RINGED else ranks):
        raise RunError(
            f"{_whose(name, ranks)} received other numbers than were sent: see that the IOMMU is off, or "
            "set NCCL_P2P_DISABLE=1"
        )


def _within(seconds: float, call: Callable[[], T]) -> T:
    """The answer of a call that may sit in C for ever, as NCCL does while it looks for the other ranks.

    Raises:
        TimeoutError: there was none in time.
    """
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=run, daemon=True, name="first exchange").start()
    return answer.result(seconds)


def _whose(name: str, ranks: list[int]) -> str:
    who = name_ranks(ranks) if len(ranks) <= _FEW else count(len(ranks), "rank")
    return f"group {name} ({who})"
