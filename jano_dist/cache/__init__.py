"""What skipped tokens leave behind for the tokens that are computed."""

from dataclasses import dataclass

import torch

from jano_dist.cache.base import Cache, Joined, LayerKV, Moves, NoCache, Rope, untraced
from jano_dist.cache.hidden import HiddenCache
from jano_dist.cache.kv import KVCache
from jano_dist.cache.rows import Keeping, Workspace

__all__ = [
    "Cache",
    "CacheSizes",
    "HiddenCache",
    "KVCache",
    "Keeping",
    "LayerKV",
    "Moves",
    "NoCache",
    "Rope",
    "Workspace",
    "make_caches",
    "untraced",
]


@dataclass(frozen=True)
class CacheSizes:
    """What one rank's caches must hold.

    Attributes:
        layers: of the transformer.
        tokens: this rank's own. shard_tokens: those of the ranks of its Ulysses group.
        heads: of the model. shard_heads: this rank's under Ulysses.
        head_dim: elements per head.
        second: of second attentions, where the transformer has them; their layers come after the others.
    """

    layers: int
    tokens: int
    shard_tokens: int
    heads: int
    shard_heads: int
    head_dim: int
    second: "CacheSizes | None" = None


def make_caches(
    kind: str, keeping: Keeping, sizes: CacheSizes, branches: int, dtype: torch.dtype, device: torch.device
) -> tuple[list[Cache], int]:
    """One empty cache per branch, and the bytes of the buffers they share.

    Args:
        kind: `kv` or `hidden`. keeping: in which format, and where.
        dtype: of the computed rows. device: where they are computed.
    """
    caches, nbytes = _alike(kind, keeping, sizes, branches, dtype, device)
    if sizes.second is None:
        return caches, nbytes
    more, more_bytes = _alike(kind, keeping, sizes.second, branches, dtype, device)
    return [Joined(*pair) for pair in zip(caches, more, strict=True)], nbytes + more_bytes


def _alike(
    kind: str, keeping: Keeping, sizes: CacheSizes, branches: int, dtype: torch.dtype, device: torch.device
) -> tuple[list[Cache], int]:
    """The same of layers that keep the same tokens."""
    tokens, heads, dim = sizes.shard_tokens, sizes.shard_heads, sizes.head_dim
    if kind == "kv":
        space = Workspace(2, (tokens, heads, dim), dtype, device, keeping)
        caches: list[Cache] = [
            KVCache(sizes.layers, tokens, heads, dim, dtype, device, space=space) for _ in range(branches)
        ]
        return caches, space.nbytes
    space = Workspace(1, (sizes.tokens, sizes.heads, dim), dtype, device, keeping)
    ropes: list[Rope] = []
    caches = [HiddenCache(sizes.layers, sizes.tokens, space=space, ropes=ropes) for _ in range(branches)]
    return caches, space.nbytes + sizes.tokens * dim * 4
