"""How rows are kept: as they are or in 8 bits, on the accelerator or in host memory.

A `RowStore` holds some tensors of one layer. Every step puts fresh rows into it and gets all rows back,
fresh ones exactly as given. Layers that keep their rows elsewhere, or in another format, take turns in
the buffers of one `Workspace`.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from jano_dist.cache.base import Moves
from jano_dist.pinned import exact_sizes

_FP8 = torch.float8_e4m3fn
_FP8_MAX = 448.0
_SMALLEST = 1e-12  # scale of a row of zeros
_FEW = 32  # runs of rows that are copied one by one; more of them, by index


class Keeping(NamedTuple):
    """How rows are kept (`cache` section of the config)."""

    dtype: Literal["native", "fp8"] = "native"
    device: Literal["accelerator", "cpu"] = "accelerator"


class Workspace:
    """Buffers on the accelerator in which the layers of all branches take turns.

    Args:
        tensors: how many tensors a layer keeps: 2, keys and values, or 1.
        shape: [N, H, D] of each.
        dtype: of the computed rows. device: where they are computed.
    """

    def __init__(
        self,
        tensors: int,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        device: torch.device,
        keeping: Keeping,
    ) -> None:
        self.shape, self.device = shape, device
        self._tensors, self._dtype = tensors, dtype
        self.fp8, self.offloads = keeping.dtype == "fp8", keeping.device == "cpu"
        whole = tensors if self.fp8 else 0
        self.whole = [torch.zeros(*shape, dtype=dtype, device=device) for _ in range(whole)]
        self.turns = _Turns([self.parts(device) for _ in range(2)], device) if self.offloads else None

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        turns = [part for slot in self.turns.slots for part in slot] if self.turns else []
        return sum(buffer.nbytes for buffer in (*self.whole, *turns))

    def parts(self, device: torch.device) -> list[Tensor]:
        """What one layer keeps: each tensor, or its codes and a float32 scale per row and head."""
        if self.fp8:
            layout = [(self.shape, _FP8), (self.shape[:2], torch.float32)] * self._tensors
        else:
            layout = [(self.shape, self._dtype)] * self._tensors
        if self._tensors == 2 and not self.fp8 and not self.offloads:
            # A head's keys lie together in memory: attention of few queries reads them faster that way.
            rows, heads, dim = self.shape
            flat = [torch.zeros(heads, rows, dim, dtype=self._dtype, device=device) for _ in layout]
            return [buffer.transpose(0, 1) for buffer in flat]
        pinned = device.type == "cpu" and self.device.type == "cuda"
        if pinned:
            exact_sizes()
        return [torch.zeros(*shape, dtype=dtype, device=device, pin_memory=pinned) for shape, dtype in layout]


class RowStore:
    """The tensors [N, H, D] that one layer keeps."""

    def __init__(self, space: Workspace) -> None:
        self._space = space
        self._kept = space.parts(torch.device("cpu") if space.offloads else space.device)
        self.following: RowStore | None = None  # the next layer's, whose rows are fetched ahead

    @property
    def row_shape(self) -> tuple[int, int]:
        """(H, D)."""
        return self._space.shape[1:]

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        return sum(part.nbytes for part in self._kept)

    def put(self, fresh: Sequence[Tensor], moves: Moves) -> list[Tensor]:
        """Overwrite the rows of `moves` with fresh ones [n, H, D]; all rows [N, H, D] of each tensor.

        The result is valid until another layer's turn.
        """
        rows, space = sum(length for _, _, length in moves), self._space
        if space.turns is None:
            parts = self._kept
        else:
            parts = space.turns.bring(self._kept, rows)
            if self.following is not None:
                space.turns.fetch(self.following._kept, rows)
        whole = space.whole if space.fp8 else parts
        for place, x in enumerate(fresh):
            if space.fp8:
                _decode(parts[2 * place], parts[2 * place + 1], rows, whole[place])
            _move(x, whole[place], moves)
            if space.fp8:
                _encode(whole[place][:rows], parts[2 * place], parts[2 * place + 1])
        if space.turns is not None:
            space.turns.keep(parts, self._kept, rows)
        return whole


def _move(x: Tensor, kept: Tensor, moves: Moves) -> None:
    """Rows of x [n, H, D] to their places in `kept` [N, H, D]."""
    if len(moves) <= _FEW:
        for source, target, length in moves:
            kept[target : target + length] = x[source : source + length]
        return
    sources, targets, lengths = torch.tensor(moves).unbind(1)
    within = torch.arange(int(lengths.sum())) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    place, origin = (
        (each.repeat_interleave(lengths) + within).to(x.device, non_blocking=True)
        for each in (targets, sources)
    )
    kept.index_copy_(0, place, x[origin])


def _encode(x: Tensor, codes: Tensor, scales: Tensor) -> None:
    """x [n, H, D] -> the first n rows of 8-bit codes [N, H, D] and of their scales [N, H]."""
    rows = len(x)
    scale = x.float().abs().amax(-1).div_(_FP8_MAX).clamp_(min=_SMALLEST)
    scales[:rows] = scale
    codes[:rows] = (x / scale.unsqueeze(-1)).to(_FP8)


def _decode(codes: Tensor, scales: Tensor, first: int, out: Tensor) -> None:
    """Rows from `first` on, written to `out`."""
    out[first:] = codes[first:].to(out.dtype) * scales[first:].unsqueeze(-1).to(out.dtype)


class _Turns:
    """Two sets of buffers for what is kept in host memory: one layer's in use, the next one's arriving.

    On a CUDA device the copies run on a stream of their own, beside the computation.
    """

    def __init__(self, slots: list[list[Tensor]], device: torch.device) -> None:
        self.slots = slots
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._arriving: tuple[list[Tensor], int] | None = None  # what, from which row on
        self._turn = 0

    def fetch(self, kept: list[Tensor], rows: int) -> None:
        """Begin to copy the rows from `rows` on into the buffers whose turn is next."""
        self._turn = 1 - self._turn
        self._arriving = (kept, rows)
        with self._aside():
            for buffer, part in zip(self.slots[self._turn], kept, strict=True):
                buffer[rows:].copy_(part[rows:], non_blocking=True)

    def bring(self, kept: list[Tensor], rows: int) -> list[Tensor]:
        """The buffers with the rows from `rows` on, fetched ahead if this layer was expected."""
        expected = self._arriving is not None and self._arriving[0] is kept and self._arriving[1] == rows
        if not expected:
            self.fetch(kept, rows)
        self._arriving = None
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
        return self.slots[self._turn]

    def keep(self, buffers: list[Tensor], kept: list[Tensor], rows: int) -> None:
        """Begin to copy the first `rows` rows back to host memory."""
        with self._aside():
            for buffer, part in zip(buffers, kept, strict=True):
                part[:rows].copy_(buffer[:rows], non_blocking=True)

    def _aside(self) -> Any:
        """On the copying stream, after all that was given to the computing one."""
        if self._stream is None:
            return nullcontext()
        self._stream.wait_stream(torch.cuda.current_stream())
        return torch.cuda.stream(self._stream)


def in_turn(layers: int, space: Workspace) -> list[RowStore]:
    """A store per layer, each knowing the next."""
    stores = [RowStore(space) for _ in range(layers)]
    for store, following in pairwise(stores):
        store.following = following
    return stores
