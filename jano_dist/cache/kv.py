"""In-place K/V cache: one key and one value buffer per layer, for one branch.

Rows lie bucket by bucket, active first, so the rows a step computes are a prefix: a step overwrites
it and attention reads the whole buffer. No mask, no concatenation, no index. Inside a bucket rank 0's
rows come first, then rank 1's: an active step's rows then arrive in the order in which they are kept.

Shapes: n computed rows, N tokens, H heads, D head dimension.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

Moves = Sequence[tuple[int, int, int]]


class LayerKV(Protocol):
    """What one layer's self-attention asks of a cache."""

    def update(self, k_nhd: Tensor, v_nhd: Tensor, moves: Moves) -> tuple[Tensor, Tensor]:
        """Take the keys and values [n, H, D] of the computed rows, return those to attend to [N, H, D].

        May overwrite its buffers; never writes to its arguments.

        Args:
            moves: (from, to, length), which rows go where in the buffers (`Deal.moves`).
        """


class Cache(Protocol):
    """One branch's cache: a `LayerKV` per layer."""

    @property
    def layers(self) -> Sequence[LayerKV]: ...

    @property
    def nbytes(self) -> int:
        """Bytes held."""


class _Fresh:
    """Keeps nothing: attention sees just what the step computed."""

    def update(self, k_nhd: Tensor, v_nhd: Tensor, moves: Moves) -> tuple[Tensor, Tensor]:
        return k_nhd, v_nhd


class NoCache:
    """The null cache: steps that compute every token and leave the cache alone (FULL)."""

    nbytes = 0

    def __init__(self, layers: int) -> None:
        self.layers = [_Fresh()] * layers


class _InPlace:
    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        tokens, heads, head_dim = shape
        # A head's rows lie together in memory: attention of few queries reads them faster that way.
        self.k, self.v = (
            torch.zeros(heads, tokens, head_dim, dtype=dtype, device=device).transpose(0, 1)  # [N, H, D]
            for _ in range(2)
        )

    def update(self, k_nhd: Tensor, v_nhd: Tensor, moves: Moves) -> tuple[Tensor, Tensor]:
        for source, target, length in moves:
            self.k[target : target + length] = k_nhd[source : source + length]
            self.v[target : target + length] = v_nhd[source : source + length]
        return self.k, self.v


class KVCache:
    """Keys and values of all N tokens of one branch, `2 x layers x N x H x D` elements.

    Args:
        layers, tokens, heads, head_dim: sizes; under Ulysses `heads` are this rank's.
        dtype: of the elements. device: where they lie.
    """

    def __init__(
        self, layers: int, tokens: int, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.layers = [_InPlace((tokens, heads, head_dim), dtype, device) for _ in range(layers)]

    @property
    def nbytes(self) -> int:
        """Bytes held, counted from the buffers."""
        return sum(layer.k.nbytes + layer.v.nbytes for layer in self.layers)
