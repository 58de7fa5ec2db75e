"""Policies that measurements put in the place of others."""

from typing import Any, cast

import torch
from torch import Tensor

from jano_dist.policies import Policy
from jano_dist.policies.full import FullPolicy
from jano_dist.tokens.complexity import ACTIVE, MODERATE, STATIC


class Recorder(FullPolicy):
    """Computes everything and keeps every guided velocity.

    Attributes:
        velocities: [C, T, H, W] of each step so far, on the CPU.
    """

    def __init__(self) -> None:
        self.velocities: list[Tensor] = []

    def observe(self, step: int, velocity: Tensor) -> Tensor | None:
        self.velocities.append(velocity.float().cpu().clone())
        return None


class _GivenMap:
    """Another policy in all but its map."""

    def __init__(self, inner: Policy, levels: Tensor) -> None:
        self._inner, self._levels = inner, levels

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def observe(self, step: int, velocity: Tensor) -> Tensor | None:
        made = self._inner.observe(step, velocity)
        return None if made is None else self._levels.to(made)


def with_map(inner: Policy, levels: Tensor) -> Policy:
    """A policy that does as `inner` does, but with a complexity map uint8 [N] from outside."""
    return cast(Policy, _GivenMap(inner, levels))


def spread_map(tokens: int, *, active: float, moderate: float) -> Tensor:
    """A complexity map of given shares, uint8 [N]: what a step costs depends on the shares alone."""
    levels = torch.full((tokens,), STATIC, dtype=torch.uint8)
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(0))
    first, second = round(active * tokens), round((active + moderate) * tokens)
    levels[order[:first]], levels[order[first:second]] = ACTIVE, MODERATE
    return levels
