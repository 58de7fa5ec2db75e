"""What attention and the engine ask of a cache, and the cache that keeps nothing.

Shapes: n computed rows, N rows kept, W hidden size, H heads, D head dimension.
"""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

_F = TypeVar("_F")


def untraced(function: _F) -> _F:
    """Runs as it is where blocks are compiled: what is kept, and exchanged between ranks, is no part of a
    graph."""
    return cast(_F, torch.compiler.disable(cast(Any, function)))


# (from, to, length): which of the computed rows go where in the buffers (`Deal.moves`). What a step
# computes is a prefix of the buffers.
Moves = Sequence[tuple[int, int, int]]

# Rotary embedding: complex64 [n, 1, D/2], by what each pair of channels is turned.
Rope = Tensor


class LayerKV(Protocol):
    """One layer's part of a cache."""

    def inputs(self, x: Tensor, rope: Rope) -> tuple[Tensor, Rope]:
        """The rows to make keys and values of, given those this rank computes: [n, W], or all it has.

        May overwrite buffers; never writes to its arguments.
        """

    def update(self, k_nhd: Tensor, v_nhd: Tensor, moves: Moves) -> tuple[Tensor, Tensor]:
        """Take the keys and values [n, H, D] of those rows, return those to attend to [N, H, D].

        May overwrite buffers; never writes to its arguments.
        """


class Cache(Protocol):
    """One branch's cache: a `LayerKV` per layer."""

    # Whether `inputs` answers with all rows of a rank, so that keys and values of all are exchanged.
    projects_all: bool

    @property
    def layers(self) -> Sequence[LayerKV]: ...

    @property
    def nbytes(self) -> int:
        """Bytes kept."""


class Joined:
    """Two caches of a branch as one: the layers of the first, then those of the second."""

    def __init__(self, first: Cache, second: Cache) -> None:
        self.projects_all = first.projects_all
        self.layers = [*first.layers, *second.layers]
        self.nbytes = first.nbytes + second.nbytes


class _Fresh:
    """Keeps nothing: attention sees just what the step computed."""

    def inputs(self, x: Tensor, rope: Rope) -> tuple[Tensor, Rope]:
        return x, rope

    def update(self, k_nhd: Tensor, v_nhd: Tensor, moves: Moves) -> tuple[Tensor, Tensor]:
        return k_nhd, v_nhd


class NoCache:
    """The null cache: steps that compute every token and leave the cache alone (FULL)."""

    nbytes = 0
    projects_all = False

    def __init__(self, layers: int) -> None:
        self.layers = [_Fresh()] * layers
