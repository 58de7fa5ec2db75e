"""In-place K/V cache: one key and one value buffer per layer, for one branch.

Rows lie in plan order (`TokenPlan.order`), so the rows a step computes are a prefix: a step
overwrites it and attention reads the whole buffer. No mask, no concatenation, no index.

Shapes: n computed rows, N tokens, H heads, D head dimension.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class LayerKV(Protocol):
    """What one layer's self-attention asks of a cache."""

    def update(self, k_nhd: Tensor, v_nhd: Tensor) -> tuple[Tensor, Tensor]:
        """Take the keys and values [n, H, D] of the computed rows, return those to attend to [N, H, D].

        May overwrite its buffers; never writes to its arguments.
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

    def update(self, k_nhd: Tensor, v_nhd: Tensor) -> tuple[Tensor, Tensor]:
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

    def update(self, k_nhd: Tensor, v_nhd: Tensor) -> tuple[Tensor, Tensor]:
        rows = k_nhd.shape[0]
        self.k[:rows] = k_nhd
        self.v[:rows] = v_nhd
        return self.k, self.v


class KVCache:
    """Keys and values of all N tokens of one branch, `2 x layers x N x H x D` elements.

    Args:
        layers, tokens, heads, head_dim: sizes.
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
