"""Mesh: the ranks of a gang arranged as cfg x kv x ulysses.

The only place that calls collectives on tensors; it counts the bytes they send and the time they take.
One process is a mesh of one rank, whose collectives move nothing.

    world 4 = cfg 2 x kv 1 x ulysses 2     ulysses (heads, inside a node)
                                           rank 0 - rank 1    cond branch
                                    cfg      |        |
                                           rank 2 - rank 3    uncond branch
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from jano_dist.config import MeshConfig
from jano_dist.errors import PeerLost, UserError

Dim = Literal["cfg", "kv", "ulysses"]
DIMS: tuple[Dim, ...] = ("cfg", "kv", "ulysses")
_CPU = torch.device("cpu")


class Degrees(NamedTuple):
    """Ranks along each dimension."""

    cfg: int
    kv: int
    ulysses: int


class Traffic(NamedTuple):
    """What one rank's collectives cost: bytes sent to others, seconds in them (waiting included)."""

    nbytes: int
    seconds: float


class Mesh:
    """The degrees of the three parallel dimensions and the collectives over them.

    Args:
        cfg, kv, ulysses: degrees. Rank = (cfg index * kv + kv index) * ulysses + ulysses index.
        world: ranks that take part; None is all of the process group, or this process where there is none.
        device: where the tensors of this rank lie.
        timeout_seconds: how long a collective waits for the other ranks.

    Raises:
        UserError: the degrees do not multiply to the number of ranks.
        PeerLost: from any collective, when another rank is gone or does not answer in time.
    """

    def __init__(
        self,
        *,
        cfg: int = 1,
        kv: int = 1,
        ulysses: int = 1,
        world: int | None = None,
        device: torch.device = _CPU,
        timeout_seconds: float = 120,
    ) -> None:
        self.degrees, self.device = Degrees(cfg, kv, ulysses), device
        self.world = ranks_started() if world is None else world
        self.rank = dist.get_rank() if self.world > 1 else 0
        if cfg * kv * ulysses != self.world:
            raise UserError(
                f"cfg {cfg} x kv {kv} x ulysses {ulysses} is {cfg * kv * ulysses} ranks, but {self.world} "
                "were started: start as many ranks as the degrees multiply to"
            )
        self._groups = self._form(timeout_seconds) if self.world > 1 else None
        self._sent, self._clock = 0, _Clock(device)

    @classmethod
    def single(cls, device: torch.device = _CPU) -> "Mesh":
        """This process alone, also where there are others: every degree is 1."""
        return cls(world=1, device=device)

    def _form(self, timeout_seconds: float) -> DeviceMesh:
        ranks = torch.arange(self.world).reshape(self.degrees)
        groups = []
        for axis in range(len(DIMS)):
            lines = ranks.movedim(axis, -1).flatten(0, -2).tolist()
            # Given here because the groups that init_device_mesh makes do not inherit the gang's time-out.
            limit = timedelta(seconds=timeout_seconds)
            groups.append(dist.new_subgroups_by_enumeration(lines, timeout=limit)[0])
        return DeviceMesh.from_group(groups, self.device.type, ranks, mesh_dim_names=DIMS)

    @property
    def is_coordinator(self) -> bool:
        """Whether this rank is the one that scores, decides and writes."""
        return self.rank == 0

    @property
    def world_group(self) -> Any:
        """All ranks, for libraries that bring their own collectives; they are not counted here."""
        return dist.group.WORLD

    @property
    def sequence_ranks(self) -> int:
        """Ranks that share one branch's tokens."""
        return self.degrees.kv * self.degrees.ulysses

    @property
    def sequence_rank(self) -> int:
        """This rank's place among them."""
        return self.rank % self.sequence_ranks

    def size(self, dim: Dim) -> int:
        """The degree of a dimension."""
        return self.degrees[DIMS.index(dim)]

    def index(self, dim: Dim) -> int:
        """This rank's place along a dimension."""
        return 0 if self._groups is None else self._groups.get_local_rank(dim)

    def all_to_all(self, rows: Tensor, sent: Sequence[int], received: Sequence[int], dim: Dim) -> Tensor:
        """Hand rows out along a dimension: `rows` [sum(sent), ...] -> [sum(received), ...].

        Args:
            rows: contiguous; the first `sent[0]` rows go to index 0 of the dimension, and so on.
            sent, received: rows to and from each index, itself included. May differ and may be 0.
        """
        if self._groups is None or self.size(dim) == 1:
            return rows
        result = rows.new_empty(sum(received), *rows.shape[1:])
        to_others = sum(sent) - sent[self.index(dim)]
        with self._counted(to_others * rows[:1].nbytes if len(rows) else 0):
            group = self._groups.get_group(dim)
            dist.all_to_all_single(result, rows, list(received), list(sent), group=group)
        return result

    def gather_rows(self, rows: Tensor, counts: Sequence[int], dim: Dim) -> Tensor:
        """Every index's rows along a dimension, in order: [counts[own], ...] -> [sum(counts), ...].

        An all-to-all, because gloo's all-gather cannot do unequal counts and is slower (docs/decisions.md).
        """
        size = self.size(dim)
        if size == 1:
            return rows
        return self.all_to_all(torch.cat([rows] * size), [len(rows)] * size, counts, dim)

    def broadcast(self, tensor: Tensor) -> Tensor:
        """The coordinator's tensor on every rank. Overwrites `tensor` (same shape everywhere) elsewhere."""
        if self.world > 1:
            with self._counted(tensor.nbytes * (self.world - 1) if self.is_coordinator else 0):
                dist.broadcast(tensor, src=0)
        return tensor

    def decide(self, *values: int) -> tuple[int, ...]:
        """The coordinator's integers on every rank; what other ranks pass is ignored."""
        if self.world == 1:
            return values
        # A CPU tensor, so that a GPU is not waited for.
        return tuple(self.broadcast(torch.tensor(values, dtype=torch.int64)).tolist())

    def collect(self, tensor: Tensor) -> Tensor:
        """Every rank's CPU tensor, same shape everywhere: [...] -> [world, ...]."""
        if self.world == 1:
            return tensor[None]
        everyone = [torch.empty_like(tensor) for _ in range(self.world)]
        with self._counted(tensor.nbytes * (self.world - 1)):
            dist.all_gather(everyone, tensor)
        return torch.stack(everyone)

    def differing(self, digest: bytes) -> list[int]:
        """Ranks whose digest is not the coordinator's; the same list on every rank."""
        rows = self.collect(torch.tensor(list(digest), dtype=torch.uint8))
        return [rank for rank, row in enumerate(rows) if not torch.equal(row, rows[0])]

    def take_traffic(self) -> Traffic:
        """Bytes sent and seconds spent since the last call. Waits for the device."""
        traffic = Traffic(self._sent, self._clock.take())
        self._sent = 0
        return traffic

    def record(self) -> dict[str, int]:
        """`{cfg, kv, ulysses, world}` for the run record."""
        return {**self.degrees._asdict(), "world": self.world}

    @contextmanager
    def _counted(self, nbytes: int) -> Iterator[None]:
        self._clock.start()
        try:
            yield
        except RuntimeError as error:
            if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise  # a mistake of ours, not a lost rank
            reason = str(error).rpartition("] ")[2].partition(". ")[0]
            raise PeerLost(f"contact with another rank was lost ({reason})") from error
        self._clock.stop()
        self._sent += nbytes


class _Clock:
    """Sums the seconds between starts and stops, on the CUDA stream where there is one, without waiting."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[Any] = []

    def start(self) -> None:
        self._marks.append(self._now())

    stop = start

    def take(self) -> float:
        marks, self._marks = self._marks, []
        pairs = zip(marks[::2], marks[1::2], strict=True)
        if not self._cuda:
            return float(sum(end - begin for begin, end in pairs))
        torch.cuda.synchronize()
        return float(sum(begin.elapsed_time(end) for begin, end in pairs)) / 1e3

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def ranks_started() -> int:
    """Ranks of the process group; 1 where there is none."""
    return dist.get_world_size() if dist.is_initialized() else 1


def choose_degrees(asked: MeshConfig, *, world: int, heads: int, guided: bool) -> Degrees:
    """Degrees for `world` ranks: CFG first where it can be, the rest is Ulysses.

    Args:
        asked: degrees the user fixed; None is chosen here.
        world: ranks started. heads: of the model. guided: whether there is an uncond branch.

    Raises:
        UserError: no such mesh; the sentence lists the valid ones.
    """
    valid = [
        Degrees(cfg, 1, world // cfg)
        for cfg in ((2, 1) if guided else (1,))
        if world % cfg == 0 and heads % (world // cfg) == 0
    ]
    fitting = [
        degrees
        for degrees in valid
        if asked.cfg in (None, degrees.cfg) and asked.ulysses in (None, degrees.ulysses)
    ]
    if fitting:
        return fitting[0]
    wish = " x ".join(
        f"--{name} {degree}" for name, degree in (("cfg", asked.cfg), ("ulysses", asked.ulysses)) if degree
    )
    raise UserError(
        f"{wish or 'the model'} does not fit {world} rank{'s' if world > 1 else ''} with {heads} heads and "
        f"guidance {'on' if guided else 'off'}: {_advice(valid, heads, guided)}"
    )


def _advice(valid: Sequence[Degrees], heads: int, guided: bool) -> str:
    if valid:
        return "use " + " or ".join(f"--cfg {d.cfg} --ulysses {d.ulysses}" for d in valid)
    divisors = [degree for degree in range(1, heads + 1) if heads % degree == 0]
    worlds = sorted({cfg * ulysses for cfg in ((1, 2) if guided else (1,)) for ulysses in divisors})
    *fewer, most = map(str, worlds)
    return f"start {', '.join(fewer)} or {most} ranks" if fewer else "start 1 rank"
