"""The protocol every policy satisfies."""

from typing import Protocol

from torch import Tensor

from jano_dist.tokens.schedule import StepKind


class Policy(Protocol):
    """Decides, once per step and on the coordinator, what the step computes.

    One object lives for one generation. It sees what it needs through arguments.
    """

    def decide(self, step: int) -> StepKind:
        """The kind of step `step` (from 0). Called once per step, before the transformer runs."""

    def observe(self, step: int, velocity: Tensor) -> Tensor | None:
        """Look at the guided velocity [C, T, H, W] of a finished step.

        Returns:
            A complexity map uint8 [N] when a new one was made at this step, else None. From the
            next step on the engine computes by the plan made from it.
        """

    def starts_afresh(self, step: int) -> bool:
        """Whether step `step` and all after it need no cache and nothing that the policy has observed, so
        that a snapshot taken before it holds all they need."""
