"""In-place K/V cache: one key and one value buffer per layer, for one branch.

Rows lie bucket by bucket, active first, so the rows a step computes are a prefix: a step overwrites
it and attention reads the whole buffer. No mask, no concatenation, no index. Inside a bucket the first
rank's rows come first, then the second's: an active step's rows arrive in the order they are kept in.
"""

import torch
from torch import Tensor

from jano_dist.cache.base import Moves, Rope
from jano_dist.cache.rows import Keeping, RowStore, Workspace, in_turn


class _LayerKV:
    def __init__(self, store: RowStore) -> None:
        self._store = store

    def inputs(self, x: Tensor, rope: Rope) -> tuple[Tensor, Rope]:
        return x, rope

    def update(self, k_nhd: Tensor, v_nhd: Tensor, moves: Moves) -> tuple[Tensor, Tensor]:
        k_all, v_all = self._store.put((k_nhd, v_nhd), moves)
        return k_all, v_all


class KVCache:
    """Keys and values of N tokens of one branch, `2 x layers x N x H x D` elements.

    Args:
        layers: of the transformer.
        tokens: N, those of this rank's shard. heads: H, this rank's under Ulysses. head_dim: D.
        dtype: of the computed rows. device: where they are computed.
        space: shared by branches; None makes one.
    """

    projects_all = False

    def __init__(
        self,
        layers: int,
        tokens: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        space: Workspace | None = None,
    ) -> None:
        space = space or Workspace(2, (tokens, heads, head_dim), dtype, device, Keeping())
        self._stores = in_turn(layers, space)
        self.layers = [_LayerKV(store) for store in self._stores]

    @property
    def nbytes(self) -> int:
        """Bytes kept, counted from the buffers."""
        return sum(store.nbytes for store in self._stores)
