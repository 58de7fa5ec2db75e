"""step -> kind: what each step of a generation computes."""

from dataclasses import dataclass
from enum import StrEnum


class StepKind(StrEnum):
    """What one step computes."""

    FULL = "full"  # all tokens, cache untouched
    REFRESH = "refresh"  # all tokens, cache rewritten
    MODERATE = "moderate"  # active and moderate tokens
    ACTIVE = "active"  # active tokens only
    CHOSEN = "chosen"  # tokens that a policy chooses for this step; their part of the cache is rewritten
    SKIP = "skip"  # none: the transformer does not run
    BLOCKS = "blocks"  # all tokens, through caches inside the blocks


@dataclass(frozen=True)
class Schedule:
    """The published schedule: full warm-up, a repeating pattern, full cool-down.

    Attributes:
        steps: number of denoising steps.
        warmup: first steps, all full; the complexity map is made from their velocities.
        cooldown: last steps, all full.
        static_interval: every so many steps after the warm-up all tokens are computed (REFRESH).
        moderate_interval: every so many steps the moderate tokens are computed too (MODERATE).

    Raises:
        ValueError: no step is left between warm-up and cool-down (except warmup == steps, which
            means "everything full"), or an interval is below 1.
    """

    steps: int
    warmup: int
    cooldown: int
    static_interval: int
    moderate_interval: int

    def __post_init__(self) -> None:
        if self.warmup != self.steps:
            check_middle(self.steps, self.warmup, self.cooldown)
        if min(self.static_interval, self.moderate_interval) < 1:
            raise ValueError("policy.static_interval and policy.moderate_interval must be 1 or more")

    def kind(self, step: int) -> StepKind:
        """The kind of a step counted from 0. Raises IndexError outside 0..steps-1."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} is outside 0..{self.steps - 1}")
        if step < self.warmup or step >= self.steps - self.cooldown:
            return StepKind.FULL
        offset = step - self.warmup
        if offset % self.static_interval == 0:
            return StepKind.REFRESH
        if offset % self.moderate_interval == 0:
            return StepKind.MODERATE
        return StepKind.ACTIVE


def check_middle(steps: int, warmup: int, cooldown: int) -> None:
    """Make sure that something is left between warm-up and cool-down.

    Raises:
        ValueError: nothing is.
    """
    if steps <= warmup + cooldown:
        leaves = "step leaves" if steps == 1 else "steps leave"
        raise ValueError(
            f"{steps} {leaves} nothing between {warmup} warm-up and {cooldown} "
            "cool-down steps: use more steps, lower policy.warmup or policy.cooldown, or compute every step "
            "whole (--policy full)"
        )
