"""Ranks on a Ray cluster: on every node one actor, which starts that node's ranks as processes.

Ranks are processes here, too, and not actors: they end by the same signals, with the same exit codes and the
same words as anywhere else. What Ray does is to find the nodes, hold them, and tell when one is lost.
"""

import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jano_dist.config import RuntimeConfig
from jano_dist.errors import UserError, count
from jano_dist.gang import TRACEBACK
from jano_dist.launchers.local import COMMAND_LINE, Entry, Processes, log_file, rank_environment, tail
from jano_dist.launchers.supervisor import LOOPBACK
from jano_dist.snapshot import clear

_REACH = 5  # seconds until an address that does not answer is given up
_PLACING = 20  # seconds for Ray to hand out what is free
_MOVING = 120  # seconds to find another place for ranks whose node was lost
_FORGIVING = 60  # seconds until a node is tried again on which an actor was lost
_ENDING = 5  # seconds an actor has to end its ranks


@dataclass(frozen=True)
class Shape:
    """`nodes` nodes with `per_node` ranks each, on a `unit` (GPU or CPU) of its own each."""

    nodes: int
    per_node: int
    unit: str


def choose_shape(ranks: int, nodes: Sequence[Mapping[str, float]]) -> Shape | None:
    """As few nodes as can be, with equally many ranks on each; None where they do not fit.

    Args:
        nodes: the resources of each. One with GPUs anywhere: ranks need a GPU each.
    """
    unit = "GPU" if any(node.get("GPU", 0) >= 1 for node in nodes) else "CPU"
    sizes = [int(node.get(unit, 0)) for node in nodes]
    for per_node in range(ranks, 0, -1):
        needed, rest = divmod(ranks, per_node)
        if rest == 0 and sum(size >= per_node for size in sizes) >= needed:
            return Shape(needed, per_node, unit)
    return None


@contextmanager
def kept_logs(folder: Path, out: Path) -> Iterator[Path]:
    """A folder for the output of ranks, in `folder`; it goes to `out`/logs when the run is finished."""
    logs = folder.resolve() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    try:
        yield logs
    except BaseException:
        if not any(logs.iterdir()):  # nothing was started
            logs.rmdir()
            clear(folder)
        raise
    for log in logs.iterdir():
        if log == log_file(logs, 0) or not log.stat().st_size:  # rank 0 was heard
            log.unlink()
    if any(logs.iterdir()):
        shutil.rmtree(out / "logs", ignore_errors=True)
        shutil.move(logs, out / "logs")
    shutil.rmtree(folder, ignore_errors=True)


def wanted_unit(runtime: RuntimeConfig) -> str:
    """What a rank needs one of, as far as the config says it."""
    return "CPU" if runtime.device == "cpu" else "GPU"


class Node:
    """The actor: the ranks of one node.

    Args:
        folder: the one that the command was started in; for relative paths.
        logs: where ranks' output goes, a file each; both must be seen from every node.
    """

    def __init__(self, entry: Entry, folder: str, logs: str) -> None:
        self._logs = Path(logs)
        self._problem = next((path for path in (folder, logs) if not Path(path).is_dir()), "")
        if not self._problem:
            os.chdir(folder)
        self._processes, self._read = Processes(entry), 0

    def describe(self) -> dict[str, Any]:
        """Which node this is, its address, and a folder that it lacks."""
        import ray

        context = ray.get_runtime_context()
        address = ray.util.get_node_ip_address()
        return {"node": context.get_node_id(), "address": address, "lacks": self._problem}

    def start(self, ranks: Sequence[int], arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start these ranks of a gang."""
        self._read = 0
        for local_rank, rank in enumerate(ranks):
            place = {"RANK": rank, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": len(ranks)}
            log = log_file(self._logs, rank)
            log.write_bytes(b"")
            self._processes.start(rank, arguments, rank_environment({**environment, **place}), str(log))

    def look(self, follow: bool) -> tuple[dict[int, int], bytes]:
        """Exit codes of ranks that have ended, and with `follow` what rank 0 has said since the last look."""
        ended, said = self._processes.ended(), b""
        if follow:
            with log_file(self._logs, 0).open("rb") as file:
                file.seek(self._read)
                said = file.read()
            self._read += len(said)
        return ended, said

    def end(self) -> None:
        """End the ranks, and wait until they are gone."""
        self._processes.end()


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Be connected to a Ray cluster; without an address (nor RAY_ADDRESS) to one of this machine's own, which
    ends with it.

    Raises:
        UserError: there is none, it does not let us in, or it runs other versions.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Or Ray announces a change of its own on every start.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = address or os.environ.get("RAY_ADDRESS")
    with _own_cluster() if address is None else _reachable(address) as options:
        import ray

        # Ray prints pages of a lost node's own log to our output, where one line says that it was lost.
        ray._private.worker.print_to_stdstream = lambda *_, **__: None
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"the Ray cluster {address or 'of this machine'} cannot be used ({reason}): see `ray status` "
                "there, and docs/clusters.md on versions and the token"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _own_cluster() -> Iterator[dict[str, Any]]:
    """A token and a folder that nobody else has, as long as it lasts."""
    own = "RAY_AUTH_TOKEN"
    given = os.environ.get(own)
    os.environ[own] = secrets.token_hex(32)
    # Not the usual temporary folder: names of sockets must be short.
    folder = tempfile.mkdtemp(prefix="jano-ray-", dir="/tmp")
    try:
        yield {"include_dashboard": False, "_temp_dir": folder, "_node_ip_address": LOOPBACK}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        del os.environ[own]
        if given is not None:
            os.environ[own] = given


@contextmanager
def _reachable(address: str) -> Iterator[dict[str, Any]]:
    """See at once whether something listens there; Ray tries for a minute."""
    host, _, port = address.rpartition(":")
    if address != "auto":
        try:
            socket.create_connection((host, int(port)), timeout=_REACH).close()
        except (OSError, ValueError) as error:
            raise UserError(
                f"no Ray cluster answers at {address} ({error}): give the head's HOST:PORT, or auto on one "
                "of its nodes"
            ) from error
    yield {}


class RayGang:
    """A gang on the cluster that this process is connected to (see `connected`).

    Args:
        ranks: how many. logs: an existing folder on a file system that all nodes share.
        wait: seconds to wait for nodes that are not there or not free yet; `unit`, GPU or CPU, is what an
            autoscaler is asked for meanwhile.
        entry: what a rank runs. forwarded: environment variables that it gets from here.

    Raises:
        UserError: the cluster has too few GPUs or CPUs.
    """

    def __init__(
        self,
        ranks: int,
        *,
        logs: Path,
        wait: float = 0,
        unit: str = "GPU",
        entry: Entry = COMMAND_LINE,
        forwarded: Sequence[str] = (TRACEBACK,),
    ) -> None:
        import ray

        self._forwarded = {name: os.environ[name] for name in forwarded if name in os.environ}
        self._ray, self._ranks, self._logs, self._wait, self._entry = ray, ranks, logs, wait, entry
        self._unit = unit
        self.address = ray.util.get_node_ip_address()
        self._group: Any = None
        self._nodes: list[Any] = []  # actors, in the order of their ranks
        self._facts: list[dict[str, Any]] = []
        self._looks: dict[int, Any] = {}
        self._lost: set[str] = set()
        self._place(wait)

    def start(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        if not self._nodes:
            self._place(max(self._wait, _MOVING))
        whole = {**self._forwarded, **_terminal(), **environment, "WORLD_SIZE": str(self._ranks)}
        self._ray.get(
            [
                node.start.remote(self._ranks_of(index), list(arguments), whole)
                for index, node in enumerate(self._nodes)
            ]
        )
        self._looks = {index: self._look(index) for index in range(len(self._nodes))}

    def ended(self) -> dict[int, int | str]:
        ended: dict[int, int | str] = {}
        for index, look in list(self._looks.items()):
            if not self._ray.wait([look], timeout=0)[0]:
                continue
            try:
                codes, said = self._ray.get(look)
            except self._ray.exceptions.RayError as error:
                del self._looks[index]
                self._lost.add(self._facts[index]["node"])
                sentence = f"the node {self._facts[index]['address']} was lost ({type(error).__name__})"
                ended |= dict.fromkeys(self._ranks_of(index), sentence)
                continue
            _pass_on(said)
            ended |= codes
            self._looks[index] = self._look(index)
        return ended

    def last_words(self, rank: int) -> list[str]:
        """The last lines that a rank said."""
        return tail(log_file(self._logs, rank)) if rank else []  # rank 0 was heard

    def end(self) -> None:
        endings = [node.end.remote() for node in self._nodes]
        if endings:
            _, silent = self._ray.wait(endings, num_returns=len(endings), timeout=_ENDING)
            self._lost |= {self._facts[endings.index(each)]["node"] for each in silent}
        try:
            self._ray.get(endings, timeout=0.1)
            self.ended()
            self._looks = {0: self._look(0)}  # what rank 0 has said last
            self._ray.wait(list(self._looks.values()), timeout=_ENDING)
            self.ended()
            self._looks = {}
        except self._ray.exceptions.RayError:  # on another start, other actors on what is left
            self.close()

    def close(self) -> None:
        for node in self._nodes:
            self._ray.kill(node)
        self._nodes, self._looks = [], {}
        if self._group is not None:
            self._ray.util.remove_placement_group(self._group)
            self._group = None

    def _ranks_of(self, index: int) -> list[int]:
        each = self._ranks // len(self._facts)
        return list(range(index * each, (index + 1) * each))

    def _look(self, index: int) -> Any:
        return self._nodes[index].look.remote(index == 0)

    def _place(self, wait: float) -> None:
        """Hold nodes for all ranks, and start an actor on each."""
        ray, began = self._ray, time.monotonic()
        with self._growing() as grow:
            while (shape := choose_shape(self._ranks, self._alive())) is None:
                if time.monotonic() > began + wait:
                    raise self._too_small()
                if time.monotonic() > began + _FORGIVING:
                    self._lost.clear()  # perhaps only its actor was lost, and nothing else is free
                grow()
                time.sleep(0.5)
        bundles = [{shape.unit: shape.per_node}] * shape.nodes
        strategy = "STRICT_SPREAD" if shape.nodes > 1 else "STRICT_PACK"
        elsewhere = [{"ray.io/node-id": f"!in({','.join(sorted(self._lost))})"}] * shape.nodes
        labels = {"bundle_label_selector": elsewhere} if self._lost else {}
        self._group = ray.util.placement_group(bundles, strategy=strategy, **labels)
        if not self._group.wait(max(_PLACING, began + wait - time.monotonic())):
            self.close()
            raise self._too_small()
        self._nodes = [self._actor(shape, index) for index in range(shape.nodes)]
        facts = ray.get([node.describe.remote() for node in self._nodes])
        order = sorted(range(shape.nodes), key=lambda index: facts[index]["node"])
        self._nodes, self._facts = [self._nodes[i] for i in order], [facts[i] for i in order]
        for each in self._facts:
            if each["lacks"]:
                self.close()
                raise UserError(
                    f"the node {each['address']} does not see the folder {each['lacks']}: start the command "
                    "in, and give --out on, a file system that all nodes share"
                )

    @contextmanager
    def _growing(self) -> Iterator[Callable[[], None]]:
        """A function that asks an autoscaler, if there is one, for all that is needed; taken back at the end.

        Once there are nodes enough the placement group holds them, and asks itself for what is not free.
        """
        from ray.autoscaler.sdk import request_resources

        asked = False

        def grow() -> None:
            nonlocal asked
            if not asked:
                request_resources(bundles=[{self._unit: 1}] * self._ranks)
                asked = True

        try:
            yield grow
        finally:
            if asked:
                request_resources(bundles=[])

    def _actor(self, shape: Shape, index: int) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        own = {"num_gpus": shape.per_node} if shape.unit == "GPU" else {"num_cpus": shape.per_node}
        options = {"num_cpus": 0, **own, "max_restarts": 0, "max_concurrency": 1}
        placed = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)
        actor = self._ray.remote(Node).options(scheduling_strategy=placed, **options)
        return actor.remote(self._entry, os.getcwd(), str(self._logs))

    def _alive(self) -> list[dict[str, float]]:
        """Resources of the nodes; without those that were lost, which Ray may not know yet."""
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        return [node["Resources"] for node in nodes if node["NodeID"] not in self._lost]

    def _too_small(self) -> UserError:
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        unit = "GPU" if any(node.get("GPU", 0) >= 1 for node in nodes) else "CPU"
        sizes = ", ".join(str(int(node.get(unit, 0))) for node in nodes)
        free = int(self._ray.available_resources().get(unit, 0))
        return UserError(
            f"{count(self._ranks, 'rank')} need as many {unit}s, equally many on each node: the cluster has "
            f"{count(len(nodes), 'node')} with {sizes} {unit}s, {free} of them free: use fewer ranks, or "
            "--wait SECONDS"
        )


def _terminal() -> dict[str, str]:
    """What makes rank 0, whose output is a file, draw its progress bar for this terminal."""
    if not sys.stdout.isatty():
        return {}
    size = os.get_terminal_size(sys.stdout.fileno())
    return {"TTY_COMPATIBLE": "1", "COLUMNS": str(size.columns), "LINES": str(size.lines)}


def _pass_on(said: bytes) -> None:
    if said:
        sys.stdout.write(said.decode(errors="replace"))
        sys.stdout.flush()
