"""Complexity map -> the order of the tokens and the rows each step kind computes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from jano_dist.tokens.complexity import ACTIVE, MODERATE, STATIC
from jano_dist.tokens.schedule import StepKind

# The lowest level a step kind still computes.
_LOWEST_LEVEL = {
    StepKind.FULL: STATIC,
    StepKind.REFRESH: STATIC,
    StepKind.MODERATE: MODERATE,
    StepKind.ACTIVE: ACTIVE,
}


@dataclass(frozen=True)
class TokenPlan:
    """Tokens ordered active, moderate, static, so that every step kind computes a prefix.

    Made once from the map; deterministic, so only the map is ever sent between ranks.

    Attributes:
        order: int64 [N], plan position -> token index in natural (t, h, w) order.
        counts: level -> number of tokens that have it.
    """

    order: Tensor
    counts: dict[int, int]

    @classmethod
    def from_levels(cls, levels: Tensor) -> "TokenPlan":
        """Order the tokens of a complexity map uint8 [N]. The order inside a level stays the natural one.

        Raises:
            ValueError: not one-dimensional, or a level outside STATIC..ACTIVE.
        """
        if levels.ndim != 1 or bool(((levels < STATIC) | (levels > ACTIVE)).any()):
            raise ValueError("a complexity map is uint8 [N] with levels 1 (static), 2 (moderate), 3 (active)")
        order = torch.argsort(levels.to(torch.int64), descending=True, stable=True)
        counts = {level: int((levels == level).sum()) for level in (STATIC, MODERATE, ACTIVE)}
        return cls(order, counts)

    @classmethod
    def natural(cls, tokens: int, device: torch.device | str = "cpu") -> "TokenPlan":
        """The plan before any map is known: every token active, in natural order."""
        return cls.from_levels(torch.full((tokens,), ACTIVE, dtype=torch.uint8, device=device))

    @property
    def tokens(self) -> int:
        """N, all tokens of the video."""
        return self.order.numel()

    def count(self, kind: StepKind) -> int:
        """How many tokens a step of this kind computes."""
        return sum(count for level, count in self.counts.items() if level >= _LOWEST_LEVEL[kind])

    def rows(self, kind: StepKind) -> Tensor:
        """Token indices int64 [count(kind)] a step of this kind computes: a prefix of the order."""
        return self.order[: self.count(kind)]

    def shares(self) -> dict[str, float]:
        """Fraction of the tokens at each level; the three sum to 1."""
        names = {"static": STATIC, "moderate": MODERATE, "active": ACTIVE}
        return {name: self.counts[level] / self.tokens for name, level in names.items()}
