"""Self-attention of the rows that several ranks compute.

Ulysses (Jacobs et al., "DeepSpeed Ulysses", 2023): before attention an all-to-all turns "my rows, all
heads" into "all rows, my heads", and after it another one turns the result back. K and V are kept
*after* the exchange, so a rank holds its heads of all N tokens, and a step exchanges only computed rows.

Two collectives per layer and forward: q, k, v together, then the output.

Shapes: n rows of all ranks, n_r of this one, N tokens, H heads, S ranks, h = H / S, D head dimension.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from jano_dist.attention.kernels import attention
from jano_dist.cache.kv import LayerKV, Moves
from jano_dist.mesh import Mesh


class Attend(Protocol):
    """Self-attention of one step. One object serves all layers of a forward."""

    def __call__(self, q_nhd: Tensor, k_nhd: Tensor, v_nhd: Tensor, kv: LayerKV) -> Tensor:
        """This rank's rows [n_r, H, D] three times -> [n_r, H, D]. Writes to `kv`."""


def attend_locally(q_nhd: Tensor, k_nhd: Tensor, v_nhd: Tensor, kv: LayerKV) -> Tensor:
    """All rows are this rank's own."""
    return attention(q_nhd, *kv.update(k_nhd, v_nhd, ((0, 0, len(k_nhd)),)))


def sequence_attention(mesh: Mesh, counts: Sequence[int], moves: Moves) -> Attend:
    """The attention of a step whose rows are dealt over the mesh.

    Args:
        counts: rows of each rank that shares the sequence. moves: where they go in the cache (`Deal`).
    """
    return attend_locally if mesh.size("ulysses") == 1 else Ulysses(mesh, counts, moves)


class Ulysses:
    """Attend with this rank's heads to the rows of all ranks. See `sequence_attention`."""

    def __init__(self, mesh: Mesh, counts: Sequence[int], moves: Moves) -> None:
        self._mesh, self._counts, self._moves = mesh, counts, moves
        self._ranks, self._own = mesh.size("ulysses"), counts[mesh.index("ulysses")]

    def __call__(self, q_nhd: Tensor, k_nhd: Tensor, v_nhd: Tensor, kv: LayerKV) -> Tensor:
        q, k, v = self._to_heads(q_nhd, k_nhd, v_nhd).unbind(1)  # [n, h, D]
        return self._to_rows(attention(q, *kv.update(k, v, self._moves)))

    def _to_heads(self, *qkv_nhd: Tensor) -> Tensor:
        """q, k, v [n_r, H, D] -> [n, 3, h, D]."""
        rows, heads, dim = qkv_nhd[0].shape
        own_heads = heads // self._ranks
        sent = qkv_nhd[0].new_empty(self._ranks, rows, 3, own_heads, dim)
        for part, x_nhd in enumerate(qkv_nhd):
            sent[:, :, part] = x_nhd.view(rows, self._ranks, own_heads, dim).transpose(0, 1)
        return self._mesh.all_to_all(sent.flatten(0, 1), [rows] * self._ranks, self._counts, "ulysses")

    def _to_rows(self, out_nhd: Tensor) -> Tensor:
        """[n, h, D] -> [n_r, H, D]."""
        back = [self._own] * self._ranks
        received = self._mesh.all_to_all(out_nhd.contiguous(), self._counts, back, "ulysses")
        heads_apart = received.view(self._ranks, self._own, *out_nhd.shape[1:])  # [S, n_r, h, D]
        return heads_apart.transpose(0, 1).flatten(1, 2)
