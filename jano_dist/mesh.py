"""Mesh: the ranks of a gang arranged as cfg x kv x ulysses.

The only place that calls collectives on tensors; it counts the bytes they send and the time they take.
One process is a mesh of one rank, whose collectives move nothing.

    world 4 = cfg 2 x kv 1 x ulysses 2     ulysses (heads, inside a node)
                                           rank 0 - rank 1    cond branch
                                    cfg      |        |
                                           rank 2 - rank 3    uncond branch
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from jano_dist.clock import Clock, NoClock, Span, SpanClock
from jano_dist.degrees import DIMS, Degrees
from jano_dist.errors import UserError
from jano_dist.groups import DECODERS, form_groups, loss

# `sequence` is kv x ulysses: all ranks that share a branch's tokens.
Dim = Literal["cfg", "kv", "ulysses", "sequence"]
_CPU = torch.device("cpu")


class Traffic(NamedTuple):
    """What one rank's collectives cost: bytes sent to others, seconds in them (waiting included; None where
    nobody asked for them on a CUDA device)."""

    nbytes: int
    seconds: float | None


class Mesh:
    """The degrees of the three parallel dimensions and the collectives over them.

    Args:
        cfg, kv, ulysses: degrees. Rank = (cfg index * kv + kv index) * ulysses + ulysses index.
        world: ranks that take part; None is all of the process group, or this process where there is none.
        local_world: ranks on this machine; None: unknown, and the same for any number that is not the same
            on every rank or does not divide `world`: every rank is then a node of its own.
        device: where the tensors of this rank lie.
        timeout_seconds: how long a collective waits for the other ranks.
        decoders: most ranks that decode together, the first ones.

    Raises:
        UserError: the degrees do not multiply to the number of ranks.
        RunError: some of the ranks cannot exchange anything.
        PeerLost: from any collective, when another rank is gone or does not answer in time.
    """

    def __init__(
        self,
        *,
        cfg: int = 1,
        kv: int = 1,
        ulysses: int = 1,
        world: int | None = None,
        local_world: int | None = None,
        device: torch.device = _CPU,
        timeout_seconds: float = 120,
        decoders: int = DECODERS,
    ) -> None:
        self.degrees, self.device = Degrees(cfg, kv, ulysses), device
        self.world = ranks_started() if world is None else world
        self.rank = dist.get_rank() if self.world > 1 else 0
        if cfg * kv * ulysses != self.world:
            raise UserError(
                f"cfg {cfg} x kv {kv} x ulysses {ulysses} is {cfg * kv * ulysses} ranks, but {self.world} "
                "were started: start as many ranks as the degrees multiply to"
            )
        # On a CUDA device two events for each collective of each layer: only where they are asked for.
        self._sent, self._clock = 0, (NoClock() if device.type == "cuda" else Clock(device))
        self.local_world = self._agree(local_world)
        self.decoders = min(decoders, self.world)
        self._groups = self._form(timeout_seconds) if self.world > 1 else None

    @classmethod
    def single(cls, device: torch.device = _CPU) -> "Mesh":
        """This process alone, also where there are others: every degree is 1."""
        return cls(world=1, device=device)

    def _agree(self, local_world: int | None) -> int:
        """Ranks per node, on which all must agree before they form groups; 1 where nodes are uneven."""
        answers = set(self.collect(torch.tensor(local_world or 1)).tolist())
        size = answers.pop()
        return 1 if answers or self.world % size else size

    def _form(self, timeout_seconds: float) -> dict[str, Any]:
        limit = timedelta(seconds=timeout_seconds)
        with self.noticing_loss():
            return form_groups(
                self.degrees,
                local_world=self.local_world,
                device=self.device,
                limit=limit,
                decoders=self.decoders,
            )

    @property
    def is_coordinator(self) -> bool:
        """Whether this rank is the one that scores, decides and writes."""
        return self.rank == 0

    @property
    def is_node_lead(self) -> bool:
        """Whether this rank is the first of its node, the one that `broadcast_in_node` sends from."""
        return self.rank % self.local_world == 0

    @property
    def world_group(self) -> Any:
        """All ranks, for libraries that bring their own collectives; they are not counted here."""
        return dist.group.WORLD

    @property
    def decode_group(self) -> Any:
        """The ranks that decode together, the first `decoders`, for libraries; None on a rank beyond them."""
        return None if self._groups is None else self._groups["decode"]

    def size(self, dim: Dim) -> int:
        """The degree of a dimension."""
        if dim == "sequence":
            return self.degrees.kv * self.degrees.ulysses
        return self.degrees[DIMS.index(dim)]

    def index(self, dim: Dim) -> int:
        """This rank's place along a dimension."""
        _, kv, ulysses = self.degrees
        return {
            "cfg": self.rank // (kv * ulysses),
            "kv": self.rank // ulysses % kv,
            "ulysses": self.rank % ulysses,
            "sequence": self.rank % (kv * ulysses),
        }[dim]

    def begin_all_to_all(
        self, rows: Tensor, sent: Sequence[int], received: Sequence[int], dim: Dim
    ) -> "Pending":
        """Hand rows out along a dimension: `rows` [sum(sent), ...] -> [sum(received), ...], when waited for.

        Args:
            rows: contiguous; the first `sent[0]` rows go to index 0 of the dimension, and so on.
            sent, received: rows to and from each index, itself included. May differ and may be 0.
        """
        if self._groups is None or self.size(dim) == 1:
            return Pending(rows, None, nullcontext)
        result, work = self._exchange(rows, sent, received, dim, later=True)
        return Pending(result, work, lambda: self._counted(0, "wait", dim))

    def all_to_all(
        self,
        rows: Tensor,
        sent: Sequence[int],
        received: Sequence[int],
        dim: Dim,
        meanwhile: Callable[[], None] | None = None,
    ) -> Tensor:
        """`begin_all_to_all`, waited for after `meanwhile`; without it NCCL needs no stream of its own."""
        if self._groups is None or self.size(dim) == 1:
            return rows
        if meanwhile is not None:
            pending = self.begin_all_to_all(rows, sent, received, dim)
            meanwhile()
            return pending.wait()
        return self._exchange(rows, sent, received, dim, later=False)[0]

    def _exchange(
        self, rows: Tensor, sent: Sequence[int], received: Sequence[int], dim: Dim, *, later: bool
    ) -> tuple[Tensor, Any]:
        assert self._groups is not None
        result = rows.new_empty(sum(received), *rows.shape[1:])
        to_others = sum(sent) - sent[self.index(dim)]
        with self._counted(to_others * rows[:1].nbytes if len(rows) else 0, "all-to-all", dim):
            work = dist.all_to_all_single(
                result, rows, list(received), list(sent), group=self._groups[dim], async_op=later
            )
        return result, work

    def begin_gather(self, rows: Tensor, counts: Sequence[int], dim: Dim) -> "Pending":
        """Every index's rows along a dimension, in order: [counts[own], ...] -> [sum(counts), ...].

        An all-to-all, because gloo's all-gather cannot do unequal counts and is slower (docs/decisions.md).
        """
        size = self.size(dim)
        return self.begin_all_to_all(torch.cat([rows] * size), [len(rows)] * size, counts, dim)

    def gather_rows(self, rows: Tensor, counts: Sequence[int], dim: Dim) -> Tensor:
        """`begin_gather` where nothing is done meanwhile."""
        size = self.size(dim)
        return self.all_to_all(torch.cat([rows] * size), [len(rows)] * size, counts, dim)

    def broadcast(self, tensor: Tensor) -> Tensor:
        """The coordinator's tensor on every rank. Overwrites `tensor` (same shape everywhere) elsewhere."""
        if self.world > 1:
            with self._counted(tensor.nbytes * (self.world - 1) if self.is_coordinator else 0, "broadcast"):
                dist.broadcast(tensor, src=0)
        return tensor

    def broadcast_named(self, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """The coordinator's tensors, by name, on the device of every rank; what others pass is ignored."""
        mine = {} if tensors is None else {name: each.to(self.device) for name, each in tensors.items()}
        if self.world == 1:
            return mine
        layout = [
            [name, list(each.shape), str(each.dtype).removeprefix("torch.")] for name, each in mine.items()
        ]
        text = bytearray(json.dumps(layout).encode()) if self.is_coordinator else bytearray()
        (size,) = self.decide(len(text))
        sent = self.broadcast(torch.frombuffer(text or bytearray(size), dtype=torch.uint8))
        named = {}
        for name, shape, dtype in json.loads(sent.numpy().tobytes()):
            empty = torch.empty(
                0 if self.is_coordinator else shape, dtype=getattr(torch, dtype), device=self.device
            )
            named[name] = self.broadcast(mine[name].contiguous() if self.is_coordinator else empty)
        return named

    def await_everyone(self) -> None:
        """Wait until every rank has come this far, after work that may take longer than the time-out."""
        if self._groups is not None:
            # A CPU tensor: its collective notices at once when a rank ends.
            with self._counted(self.world - 1, "await everyone"):
                dist.all_reduce(torch.zeros(1, dtype=torch.uint8), group=self._groups["patient"])

    def broadcast_in_node(self, tensor: Tensor) -> Tensor:
        """The tensor of the node's first rank on all ranks of its node. Overwrites `tensor` (contiguous,
        same shape and dtype everywhere) on the others."""
        if self._groups is not None and self.local_world > 1:
            lead = self.is_node_lead
            with self._counted(tensor.nbytes * (self.local_world - 1) if lead else 0, "broadcast in node"):
                dist.broadcast(tensor, group=self._groups["node"], group_src=0)
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
        with self._counted(tensor.nbytes * (self.world - 1), "collect"):
            dist.all_gather(everyone, tensor)
        return torch.stack(everyone)

    def collect_bytes(self, data: bytes) -> list[bytes]:
        """Every rank's bytes, as many as each has."""
        lengths = self.collect(torch.tensor(len(data))).tolist()
        padded = bytearray(data.ljust(max(*lengths, 1), b"\0"))
        rows = self.collect(torch.frombuffer(padded, dtype=torch.uint8))
        return [row[:length].numpy().tobytes() for row, length in zip(rows, lengths, strict=True)]

    def differing(self, digest: bytes) -> list[int]:
        """Ranks whose digest is not the coordinator's; the same list on every rank."""
        rows = self.collect(torch.tensor(list(digest), dtype=torch.uint8))
        return [rank for rank, row in enumerate(rows) if not torch.equal(row, rows[0])]

    def take_traffic(self) -> Traffic:
        """Bytes sent and seconds spent since the last call. Waits for the device where it is timed."""
        traffic = Traffic(self._sent, self._clock.take())
        self._sent = 0
        return traffic

    def time_collectives(self) -> None:
        """From now on also time them on a CUDA device, by events on its stream; on a CPU they always are."""
        if isinstance(self._clock, NoClock):
            self._clock = Clock(self.device)

    def keep_spans(self) -> None:
        """From now on note when each collective was, for `take_spans`."""
        self._clock = SpanClock(self.device)

    def take_spans(self) -> list[Span]:
        """What was noted since the last call, in order; nothing before `keep_spans`. Waits for the device."""
        return self._clock.take_spans()

    def record(self) -> dict[str, int]:
        """`{cfg, kv, ulysses, world}` for the run record."""
        return {**self.degrees._asdict(), "world": self.world}

    @contextmanager
    def noticing_loss(self) -> Iterator[None]:
        """Around collectives, also those of libraries: a rank that is gone becomes a PeerLost."""
        try:
            yield
        except RuntimeError as error:
            lost = loss(error)
            if lost is None:
                raise  # a mistake of ours, not a lost rank
            raise lost from error

    @contextmanager
    def _counted(self, nbytes: int, *name: str) -> Iterator[None]:
        self._clock.start()
        with self.noticing_loss():
            yield
        self._clock.stop(name, nbytes)
        self._sent += nbytes


class Pending:
    """A collective on its way. It holds on to what it sends until it is waited for."""

    def __init__(self, result: Tensor, work: Any, counted: Callable[[], Any]) -> None:
        self._result, self._work, self._counted = result, work, counted

    def wait(self) -> Tensor:
        """The result; on a CUDA device the current stream waits for it, not the host."""
        if self._work is not None:
            with self._counted():
                self._work.wait()
        return self._result


def ranks_started() -> int:
    """Ranks of the process group; 1 where there is none."""
    return dist.get_world_size() if dist.is_initialized() else 1
