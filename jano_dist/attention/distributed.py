"""Self-attention of the rows that several ranks compute. Two dimensions of the mesh, which compose:

Ulysses (Jacobs et al., "DeepSpeed Ulysses", 2023): before attention an all-to-all turns "my rows, all
heads" into "all rows, my heads", and after it another one turns the result back. K and V are kept
*after* the exchange, so a rank holds its heads of all the rows, and a step exchanges only computed rows.

KV-resident, for any number of ranks: K and V stay where they are, sharded by sequence; the queries of
the computed rows go to every shard, and the partial outputs come back to be merged by log-sum-exp. A
sparse step has few queries and a large cache, so that is the smaller side to move.

Collectives per layer and forward: 2 for each dimension that has more than one rank.

Shapes: n_r rows of this rank, n_s of its shard (the ranks of one Ulysses group), n of all shards; N
tokens kept in this shard; H heads, U Ulysses ranks, h = H / U, D head dimension.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from jano_dist.attention.kernels import TORCH, Kernel, merge
from jano_dist.cache import LayerKV, Moves
from jano_dist.mesh import Mesh


def chunk_rows(device: str) -> int:
    """Queries that are sent, attended and returned at a time: one chunk travels while another computes.

    A GPU starts kernels and collectives for each of them and reads all keys again, so its chunks are larger
    (not measured).

    Args:
        device: `cpu` or `cuda`.
    """
    return 4096 if device == "cpu" else 16_384


Meanwhile = Callable[[], None] | None


class Attend(Protocol):
    """Self-attention of one step. One object serves all layers of a forward."""

    def __call__(
        self, q_nhd: Tensor, k_nhd: Tensor, v_nhd: Tensor, kv: LayerKV, *, text: bool = True
    ) -> Tensor:
        """This rank's rows [n_r, H, D] three times -> [n_r, H, D]. Writes to `kv`.

        Keys and values may be of more rows than queries are, where the layer's cache says so.

        Args:
            text: False in a joint model's second attention, to which text rows do not come.
        """


def attend_locally(q_nhd: Tensor, k_nhd: Tensor, v_nhd: Tensor, kv: LayerKV, *, text: bool = True) -> Tensor:
    """All rows are this rank's own, and PyTorch attends."""
    return TORCH.attention(q_nhd, *kv.update(k_nhd, v_nhd, ((0, 0, len(k_nhd)),)))


class SequenceAttention:
    """Attention of a step whose rows are dealt over the sequence ranks of a mesh.

    Args:
        counts: rows each sequence rank computes.
        kv_counts: rows each of them brings keys and values of: the same, or all of its rows where the
            cache keeps what keys and values are made from.
        moves: where the keys and values of this rank's shard go in the cache (`Deal.moves`).
        chunk_rows: queries of all shards that are sent at a time; see `chunk_rows`.
        kernel: that attends.
        second: attention of the rows without those of the text, where the model asks for it.
        meanwhile: called while an exchange is on its way.
    """

    def __init__(
        self,
        mesh: Mesh,
        counts: Sequence[int],
        kv_counts: Sequence[int],
        moves: Moves,
        *,
        chunk_rows: int,
        kernel: Kernel = TORCH,
        second: Attend | None = None,
        meanwhile: Meanwhile = None,
    ) -> None:
        self._ulysses = Ulysses(mesh, _of_shard(mesh, counts), _of_shard(mesh, kv_counts), meanwhile)
        resident = mesh.size("kv") > 1
        self._core = KVResident(mesh, counts, chunk_rows, kernel, meanwhile) if resident else kernel.attention
        self._moves, self._second = moves, second

    def __call__(
        self, q_nhd: Tensor, k_nhd: Tensor, v_nhd: Tensor, kv: LayerKV, *, text: bool = True
    ) -> Tensor:
        if not text and self._second is not None:
            return self._second(q_nhd, k_nhd, v_nhd, kv)
        q, k, v = self._ulysses.to_heads(q_nhd, k_nhd, v_nhd)
        return self._ulysses.to_rows(self._core(q, *kv.update(k, v, self._moves)))


def _nothing() -> None:
    return


def _of_shard(mesh: Mesh, counts: Sequence[int]) -> Sequence[int]:
    size, shard = mesh.size("ulysses"), mesh.index("kv")
    return counts[shard * size : (shard + 1) * size]


class Ulysses:
    """The exchange between rows and heads inside a shard.

    Args:
        counts: rows each rank of the shard computes. kv_counts: rows it brings keys and values of.
        meanwhile: see `SequenceAttention`.
    """

    def __init__(
        self, mesh: Mesh, counts: Sequence[int], kv_counts: Sequence[int], meanwhile: Meanwhile
    ) -> None:
        self._meanwhile = meanwhile
        self._mesh, self._counts, self._kv_counts = mesh, counts, kv_counts
        self._ranks, self._own = mesh.size("ulysses"), counts[mesh.index("ulysses")]

    def to_heads(self, q_nhd: Tensor, k_nhd: Tensor, v_nhd: Tensor) -> Sequence[Tensor]:
        """q [n_r, H, D] -> [n_s, h, D], and the same for k and v."""
        if self._ranks == 1:
            return q_nhd, k_nhd, v_nhd
        if self._counts == self._kv_counts:
            return self._exchange((q_nhd, k_nhd, v_nhd), self._counts)
        return (
            *self._exchange((q_nhd,), self._counts),
            *self._exchange((k_nhd, v_nhd), self._kv_counts),
        )

    def _exchange(self, parts: Sequence[Tensor], counts: Sequence[int]) -> Sequence[Tensor]:
        """Tensors of the same shape [n_r, H, D] in one all-to-all -> each [n_s, h, D]."""
        rows, heads, dim = parts[0].shape
        own_heads = heads // self._ranks
        sent = parts[0].new_empty(self._ranks, rows, len(parts), own_heads, dim)
        for place, part in enumerate(parts):
            sent[:, :, place] = part.view(rows, self._ranks, own_heads, dim).transpose(0, 1)
        give, rest = sent.flatten(0, 1), ([rows] * self._ranks, counts)
        received = self._mesh.all_to_all(give, *rest, "ulysses", self._meanwhile)
        return received.unbind(1)

    def to_rows(self, out_nhd: Tensor) -> Tensor:
        """[n_s, h, D] -> [n_r, H, D]."""
        if self._ranks == 1:
            return out_nhd
        back = [self._own] * self._ranks
        given = out_nhd.contiguous()
        received = self._mesh.all_to_all(given, self._counts, back, "ulysses", self._meanwhile)
        heads_apart = received.view(self._ranks, self._own, *out_nhd.shape[1:])  # [U, n_r, h, D]
        return heads_apart.transpose(0, 1).flatten(1, 2)


class KVResident:
    """Attention of every shard's queries to every shard's keys and values, which stay in their shards.

    Args:
        counts: rows each sequence rank computes. chunk_rows, kernel, meanwhile: see `SequenceAttention`.
    """

    def __init__(
        self,
        mesh: Mesh,
        counts: Sequence[int],
        chunk_rows: int,
        kernel: Kernel,
        meanwhile: Meanwhile = None,
    ) -> None:
        self._meanwhile = meanwhile or _nothing
        self._kernel, size = kernel, mesh.size("ulysses")
        shards = [sum(counts[first : first + size]) for first in range(0, len(counts), size)]
        self._mesh, self._own = mesh, mesh.index("kv")
        chunks = max(1, -(-sum(shards) // chunk_rows))
        # Rows of each shard in each chunk; the same on every rank.
        self._chunks = [
            [rows * (chunk + 1) // chunks - rows * chunk // chunks for rows in shards]
            for chunk in range(chunks)
        ]

    def __call__(self, q_nhd: Tensor, k_nhd: Tensor, v_nhd: Tensor) -> Tensor:
        """[n_s, h, D], [N, h, D], [N, h, D] -> [n_s, h, D]."""
        queries = q_nhd.split([counts[self._own] for counts in self._chunks])
        coming = [
            self._mesh.begin_gather(part.contiguous(), counts, "kv")
            for part, counts in zip(queries, self._chunks, strict=True)
        ]
        self._meanwhile()
        returning = []
        for gathered, counts in zip(coming, self._chunks, strict=True):
            parts = _pack(*self._kernel.attention_with_lse(gathered.wait(), k_nhd, v_nhd))
            back = [counts[self._own]] * len(counts)
            returning.append(self._mesh.begin_all_to_all(parts, counts, back, "kv"))
        self._meanwhile()
        merged = [merge(*_unpack(part.wait(), len(self._chunks[0]), q_nhd)) for part in returning]
        return torch.cat(merged)


def _pack(out_nhd: Tensor, lse: Tensor) -> Tensor:
    """Outputs and float32 logarithms as bytes [n, h, D * size + 4], so that they travel together."""
    return torch.cat((_bytes(out_nhd.contiguous()), _bytes(lse.contiguous().unsqueeze(-1))), dim=-1)


def _unpack(parts: Tensor, shards: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes from every shard [shards * n, h, ...] -> outputs [shards, n, h, D], logarithms [shards, n, h]."""
    width = like.shape[-1] * like.element_size()
    by_shard = parts.view(shards, len(parts) // shards, *parts.shape[1:])
    out, lse = by_shard.split([width, 4], dim=-1)
    return out.contiguous().view(like.dtype), lse.contiguous().view(torch.float32).squeeze(-1)


def _bytes(x: Tensor) -> Tensor:
    return x.view(torch.uint8)
