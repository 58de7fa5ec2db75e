"""Policies that leave the tokens alone and reuse what the transformer's blocks computed earlier."""

from collections.abc import Callable
from typing import Any

from jano_dist.policies.base import Policy
from jano_dist.reuse import BlockCache, Method, Setting, make_method
from jano_dist.tokens.grid import Shape3
from jano_dist.tokens.schedule import StepKind


class BlockPolicy(Policy):
    """Every step computes every token, through caches inside the blocks.

    What is computed there is decided while a step runs, by the coordinator (`jano_dist.reuse`).
    """

    def __init__(self, method: Method) -> None:
        self._method = method

    @classmethod
    def builder(cls, name: str) -> Callable[..., "BlockPolicy"]:
        """Makes the policy of a method's name from the settings of the config; see `make_policy`."""

        def build(*, steps: int, latent: Shape3, patch: Shape3, **options: Any) -> "BlockPolicy":
            return cls(make_method(name, options, steps=steps))

        return build

    def caches(self, setting: Setting) -> list[BlockCache]:
        """Empty caches, one per branch of this rank. Called on every rank before the first step."""
        return self._method.caches(setting)

    def decide(self, step: int) -> StepKind:
        return StepKind.BLOCKS

    def starts_afresh(self, step: int) -> bool:
        return self._method.starts_afresh(step)
