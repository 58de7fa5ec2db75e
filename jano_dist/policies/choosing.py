"""What policies share that choose the tokens of each step anew."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from jano_dist.policies.base import Policy
from jano_dist.tokens.budget import kind_of
from jano_dist.tokens.complexity import ACTIVE
from jano_dist.tokens.schedule import StepKind


class ChoosingPolicy(Policy):
    """Between warm-up and cool-down each step computes as many tokens as it is given.

    The warm-up leaves nothing in the caches, so the first step after it computes all tokens. Those that a
    step does not compute keep their velocity, and their keys and values as last computed.

    Args:
        tokens: N. warmup: first steps, which compute all of them.
        counts: tokens of each step after the warm-up; after the last of them all are computed.
    """

    def __init__(self, tokens: int, warmup: int, counts: Sequence[int]) -> None:
        self._tokens, self._warmup, self._counts = tokens, warmup, counts

    def decide(self, step: int) -> StepKind:
        offset = step - self._warmup
        if not 0 <= offset < len(self._counts):
            return StepKind.FULL
        return kind_of(self._counts[offset], self._tokens)

    def observe(self, step: int, velocity: Tensor) -> Tensor | None:
        self.look(step, velocity)
        if step != self._warmup - 1:
            return None
        return torch.full((self._tokens,), ACTIVE, dtype=torch.uint8, device=velocity.device)

    @abstractmethod
    def look(self, step: int, velocity: Tensor) -> None:
        """Learn from the guided velocity [C, T, H, W] of a finished step; skipped tokens have an old one."""

    def _cools_down(self, step: int) -> bool:
        return step >= self._warmup + len(self._counts)

    def _refills(self, step: int) -> bool:
        """Whether the step fills the caches anew."""
        return self.decide(step) is StepKind.REFRESH


def highest(score: Tensor, count: int) -> Tensor:
    """The `count` tokens with the highest score [N], as bool [N]; of equal ones the first."""
    mask = torch.zeros(len(score), dtype=torch.bool, device=score.device)
    mask[torch.argsort(score, descending=True, stable=True)[:count]] = True
    return mask
