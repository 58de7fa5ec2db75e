"""Cache of attention inputs: half the bytes of keys and values, which are made from them again each step.

Rows are a rank's own, whole (all heads), so they shrink with every rank that shares the sequence. With
KV-resident attention the keys and values made from them are where they are needed; under Ulysses all of
them cross the wire in every step.
"""

from torch import Tensor

from jano_dist.cache.base import Moves, Rope, untraced
from jano_dist.cache.rows import RowStore, Workspace, in_turn


class _LayerHidden:
    def __init__(self, store: RowStore, ropes: list[Rope], tokens: int) -> None:
        self._store, self._ropes, self._tokens = store, ropes, tokens

    @untraced
    def inputs(self, x: Tensor, rope: Rope) -> tuple[Tensor, Rope]:
        rows = len(x)
        if rows == self._tokens and not self._ropes:
            self._ropes.append(rope)  # the same in every layer and step
        (kept,) = self._store.put((x.view(rows, *self._store.row_shape),), ((0, 0, rows),))
        return kept.flatten(1), self._ropes[0]

    def update(self, k_nhd: Tensor, v_nhd: Tensor, moves: Moves) -> tuple[Tensor, Tensor]:
        return k_nhd, v_nhd


class HiddenCache:
    """Attention inputs of a rank's own tokens, for one branch: `layers x tokens x W` elements.

    The first step that uses it must compute all tokens (REFRESH).

    Args:
        layers: of the transformer. tokens: this rank's own.
        space: of one tensor [tokens, H, D] per layer; shared by branches.
        ropes: empty; shared by branches, for the rotary table of this rank's tokens.
    """

    projects_all = True

    def __init__(self, layers: int, tokens: int, *, space: Workspace, ropes: list[Rope]) -> None:
        self._stores = in_turn(layers, space)
        self.layers = [_LayerHidden(store, ropes, tokens) for store in self._stores]

    @property
    def nbytes(self) -> int:
        """Bytes kept, counted from the buffers."""
        return sum(store.nbytes for store in self._stores)
