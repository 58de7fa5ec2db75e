"""Caches inside the transformer's blocks: published methods that reuse what blocks computed earlier.

`make_method` turns a policy's name and settings into one; it makes a `BlockCache` per branch.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from jano_dist.reuse.base import BlockCache, Setting
from jano_dist.reuse.parts import PyramidAttentionBroadcast, TaylorSeer
from jano_dist.reuse.stack import FirstBlockCache, MagCache, RatioRecorder, TeaCache
from jano_dist.reuse.toca import ToCa

__all__ = ["METHODS", "BlockCache", "Method", "RatioRecorder", "Setting", "make_method"]


class Method(Protocol):
    """One published method with its settings."""

    def caches(self, setting: Setting) -> list[BlockCache]:
        """Empty caches, one per branch of this rank."""

    def starts_afresh(self, step: int) -> bool:
        """Whether step `step` and all after it need nothing that was kept before."""


METHODS: dict[str, Callable[..., Method]] = {
    "teacache": TeaCache,
    "magcache": MagCache,
    "fbcache": FirstBlockCache,
    "taylorseer": TaylorSeer,
    "pab": PyramidAttentionBroadcast,
    "toca": ToCa,
}


def make_method(name: str, options: Mapping[str, Any], *, steps: int) -> Method:
    """The method of a policy's name with its settings, for a generation of `steps` steps."""
    return METHODS[name](steps=steps, **options)
