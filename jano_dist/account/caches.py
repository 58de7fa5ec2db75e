"""Bytes of caches, from shapes alone: exact. Letters as in `account.memory`."""

from collections.abc import Callable

from jano_dist.config import CacheConfig
from jano_dist.config.policies import (
    BroadcastPolicyConfig,
    FirstBlockPolicyConfig,
    MagCachePolicyConfig,
    PolicyConfig,
    TaylorSeerPolicyConfig,
    TeaCachePolicyConfig,
    ToCaPolicyConfig,
)
from jano_dist.degrees import Degrees
from jano_dist.geometry import Geometry

_SCALE = 4  # bytes of the float32 scale of an 8-bit row

Taken = Callable[[int], int]  # bytes of a tensor -> bytes that it takes in host memory


def own_rows(rows: int, degrees: Degrees, rank: int = 0) -> int:
    """How many of the first `rows` tokens of the plan a rank has; position p is rank p % S."""
    ranks = degrees.kv * degrees.ulysses
    return max(0, -(-(rows - rank % ranks) // ranks))


def shard_rows(rows: int, degrees: Degrees, rank: int = 0) -> int:
    """How many of them the ranks of its Ulysses group have together."""
    sequence = rank % (degrees.kv * degrees.ulysses)
    first = sequence - sequence % degrees.ulysses
    return sum(own_rows(rows, degrees, first + index) for index in range(degrees.ulysses))


def _kept(
    geometry: Geometry, tokens: int, degrees: Degrees, cache: CacheConfig, rank: int, text: int = 0
) -> tuple[int, int]:
    """Elements and (row, head) pairs that one layer of a branch keeps; of the `tokens` not the first, those
    of the text, where it is a second attention's."""
    hidden = cache.kind == "hidden"
    held = own_rows if hidden else shard_rows
    per_token = geometry.heads if hidden else 2 * geometry.heads // degrees.ulysses
    rows = (held(tokens, degrees, rank) - held(text, degrees, rank)) * per_token
    return rows * geometry.head_dim, rows


def cache_bytes(
    geometry: Geometry,
    tokens: int,
    degrees: Degrees,
    cache: CacheConfig,
    element: int,
    rank: int = 0,
    *,
    text: int = 0,
) -> int:
    """Bytes that one branch's cache keeps on a rank.

    kv: 2 L N_s h D e, hidden: L N_r W e; in 8 bits D + 4 bytes for every row and head instead of D e.

    Args:
        text: how many of the tokens are of the text, which second attentions leave out.
    """
    return sum(
        layers * _layer_bytes(geometry, tokens, degrees, cache, element, rank, left_out)
        for layers, left_out in _layers(geometry, text)
    )


def _layers(geometry: Geometry, text: int) -> list[tuple[int, int]]:
    """How many layers keep tokens, and which they leave out; second attentions on their own."""
    second = [(geometry.second_layers, text)] if geometry.second_layers else []
    return [(geometry.layers, 0), *second]


def _layer_bytes(
    geometry: Geometry, tokens: int, degrees: Degrees, cache: CacheConfig, element: int, rank: int, text: int
) -> int:
    elements, rows = _kept(geometry, tokens, degrees, cache, rank, text)
    return elements + rows * _SCALE if cache.dtype == "fp8" else elements * element


def host_cache_bytes(
    geometry: Geometry,
    tokens: int,
    degrees: Degrees,
    cache: CacheConfig,
    element: int,
    taken: Taken,
    *,
    text: int = 0,
) -> int:
    """What one branch's cache takes in host memory, tensor by tensor."""
    tensors, total = 1 if cache.kind == "hidden" else 2, 0
    for layers, left_out in _layers(geometry, text):
        elements, rows = _kept(geometry, tokens, degrees, cache, 0, left_out)
        parts = [elements, rows * _SCALE] if cache.dtype == "fp8" else [elements * element]
        total += layers * tensors * sum(taken(part // tensors) for part in parts)
    return total


def working_bytes(
    geometry: Geometry,
    tokens: int,
    degrees: Degrees,
    cache: CacheConfig,
    element: int,
    rank: int = 0,
    *,
    text: int = 0,
) -> int:
    """Bytes of the buffers on the accelerator in which all layers of all branches take turns.

    8 bits: one layer in the native dtype. Host memory: two layers as they are kept, one in use and one
    arriving. hidden: the rotary table, complex64, N_r D / 2. Second attentions have buffers of their own.
    """
    total = 0
    for _, left_out in _layers(geometry, text):
        elements, _ = _kept(geometry, tokens, degrees, cache, rank, left_out)
        total += elements * element if cache.dtype == "fp8" else 0
        if cache.device == "cpu":
            total += 2 * _layer_bytes(geometry, tokens, degrees, cache, element, rank, left_out)
        if cache.kind == "hidden":
            rows = own_rows(tokens, degrees, rank) - own_rows(left_out, degrees, rank)
            total += rows * geometry.head_dim * 4
    return total


def block_cache_bytes(
    geometry: Geometry, policy: PolicyConfig, rows: int, branches: int, element: int
) -> int:
    """Bytes that a rank with `rows` tokens keeps inside the blocks, all its branches together.

    In hidden states (rows W e): one residual per branch, with fbcache the first block's too; in every layer
    the outputs of attention (pab), of all three parts (toca, and 16 bytes per token of scores and ages), or
    with their differences up to the order (taylorseer).
    """
    hidden, layers = rows * geometry.width * element, geometry.layers
    match policy:
        case TeaCachePolicyConfig() | MagCachePolicyConfig():
            return branches * hidden
        case FirstBlockPolicyConfig():
            return (branches + 1) * hidden
        case TaylorSeerPolicyConfig():
            return branches * layers * 3 * (policy.order + 1) * hidden
        case BroadcastPolicyConfig():
            return branches * layers * 2 * hidden
        case ToCaPolicyConfig():
            return branches * layers * (3 * hidden + 16 * rows)
    return 0
