"""Environment -> device and process group, and teardown."""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from torch.distributed import DistError, DistNetworkError, HashStore, PrefixStore, Store

from jano_dist.config import RuntimeConfig
from jano_dist.errors import PeerLost, RunError, UserError
from jano_dist.gang import LAUNCHED, Place, find_place, is_supervised, open_store
from jano_dist.watch import Watch


def pick_device(config: RuntimeConfig) -> torch.device:
    """The device this process computes on; `auto` takes a CUDA device where there is one.

    Each rank of a gang takes the CUDA device of its local rank and makes it the current one.

    Raises:
        UserError: CUDA is asked for and this machine has none, or fewer devices than ranks.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "runtime.device is cuda but torch sees no CUDA device: run `jano-dist doctor`, or set it to cpu"
        )
    if config.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    place, devices = find_place(), torch.cuda.device_count()
    if place.world > 1 and not (devices == 1 and _has_its_own()):
        if place.local_world > devices:
            raise UserError(
                f"{place.local_world} ranks were started on a machine with {devices} CUDA "
                f"device{'s' if devices > 1 else ''}: start at most {devices}, or set runtime.device to cpu"
            )
        torch.cuda.set_device(place.local_rank)
    return torch.device("cuda", torch.cuda.current_device())


def _has_its_own() -> bool:
    """Whether the launcher shows this rank a single device, as SLURM's `--gpus-per-task=1` and Ray do."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return visible != "" and "," not in visible


def release(device: torch.device) -> None:
    """Give freed memory back to the device: NCCL allocates its buffers beside torch, and late."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def ranks_per_node() -> int:
    """How many ranks this machine has, as the launcher says; 1 where there is no gang."""
    return find_place().local_world


def since_launch(moment: float) -> float:
    """Seconds to a moment of `time.perf_counter` from when this rank was launched.

    That is when our supervisor gave the order, so imports are part of it, or else when the process began.
    """
    launched = os.environ.get(LAUNCHED)
    age = time.time() - float(launched) if launched else _process_age()
    return age - (time.perf_counter() - moment)


def _process_age() -> float:
    """Seconds since this process began. Not psutil's on Linux, which is up to a second off."""
    if sys.platform != "linux":
        return time.time() - psutil.Process().create_time()
    ticks = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")


def require_gang() -> None:
    """Refuse to go on alone where a launcher has started several ranks: each would make the whole video.

    Raises:
        UserError: there are several and this process has not joined the others.
    """
    world = find_place().world
    if world > 1 and not dist.is_initialized():
        raise UserError(
            f"WORLD_SIZE is {world} but this process has not joined the other ranks: build the engine inside "
            "`with jano_dist.join(config.runtime):`, or give it mesh=Mesh.single()"
        )


@contextmanager
def join(config: RuntimeConfig) -> Iterator[Store]:
    """Form the process group of all ranks, and leave it at the end. A single rank needs none.

    Yields the store that the ranks share. A rank whose body raises stays in the group: it must end
    (`gang.fail_stop`), because the others may never answer its goodbye.

    Raises:
        UserError: the ranks' environment is not right, or MASTER_PORT is in use.
        RunError: ranks did not come within `config.timeout_seconds`, or cannot reach each other.
    """
    place = find_place()
    if place.world == 1 and not is_supervised():
        yield HashStore()
        return
    limit = timedelta(seconds=config.timeout_seconds)
    store = _meet(place, limit)
    if place.world > 1:
        _form(config, place, store, limit)
    watch = Watch(place, config.stall_seconds)
    yield store
    watch.leave()
    if place.world > 1:
        dist.destroy_process_group()


def _form(config: RuntimeConfig, place: Place, store: Store, limit: timedelta) -> None:
    """The process group of ranks that have met."""
    _choose_interface()
    backend = "gloo" if pick_device(config).type == "cpu" else "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(
            backend,
            store=PrefixStore("group", store),
            rank=place.rank,
            world_size=place.world,
            timeout=limit,
        )
    except RuntimeError as error:
        raise RunError(
            f"the ranks cannot reach each other ({str(error).splitlines()[0]}): set GLOO_SOCKET_IFNAME to "
            "the network interface that they share"
        ) from error


def _choose_interface() -> None:
    """Let gloo and NCCL use the network on which rank 0 is reached, unless the user has named another.

    By itself gloo takes the one that the host's own name leads to, which is often the loopback.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect((os.environ["MASTER_ADDR"], 9))  # sends nothing: it only finds the route
        own = probe.getsockname()[0]
        for name, addresses in psutil.net_if_addrs().items():
            if any(each.address == own for each in addresses):
                os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
                os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def _meet(place: Place, limit: timedelta) -> Store:
    """Wait until every rank has come, so that those who are missing can be counted."""
    seconds = f"{limit.total_seconds():g} s"
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        store = open_store(place, limit)
    except DistError as error:
        if "EADDRINUSE" in str(error):
            raise UserError(f"{address} is in use: set MASTER_PORT to a free port") from error
        raise RunError(
            f"rank 0 was not found at {address} within {seconds}: start all ranks with the same MASTER_ADDR "
            "and MASTER_PORT, or raise runtime.timeout_seconds"
        ) from error
    try:
        if store.add("met", 1) == place.world:
            store.set("all", "met")
        store.wait(["all"], limit)
        return store
    except DistNetworkError as error:
        raise PeerLost("contact with rank 0 was lost before all ranks had come") from error
    except DistError as error:
        missing = place.world - store.add("met", 0)
        raise RunError(
            f"{missing} of {place.world} ranks did not come within {seconds}: start all ranks with the same "
            "MASTER_ADDR and MASTER_PORT, or raise runtime.timeout_seconds"
        ) from error
