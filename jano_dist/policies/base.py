"""What every policy has."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from jano_dist.tokens.schedule import StepKind


class Policy(ABC):
    """Decides, once per step and on the coordinator, what the step computes.

    One object lives for one generation. It sees what it needs through arguments.

    Attributes:
        forecasts: whether velocities that a step does not compute go on in a line where that has proved
            better (see `VelocityRows`), or are held.
    """

    forecasts: bool = False

    @abstractmethod
    def decide(self, step: int) -> StepKind:
        """The kind of step `step` (from 0). Called once per step, before the transformer runs."""

    def choose(self, step: int) -> Tensor:
        """The tokens bool [N] that a step of the kind CHOSEN computes. Called after `decide` answered so."""
        raise NotImplementedError(f"{type(self).__name__} takes no step of the kind {StepKind.CHOSEN}")

    def observe(self, step: int, velocity: Tensor) -> Tensor | None:
        """Look at the guided velocity [C, T, H, W] of a finished step.

        Returns:
            A complexity map uint8 [N] when a new one was made at this step, else None. From the
            next step on the engine computes by the plan made from it, with empty caches.
        """
        return None

    def learn(self, step: int, error: float) -> None:  # noqa: B027
        """Hear how far what a step computed lay from what it would have been taken for
        (`VelocityRows.error`). Only with `forecasts`."""

    def starts_afresh(self, step: int) -> bool:
        """Whether step `step` and all after it need no cache and nothing that the policy has observed, but
        for its `memory`, so that a snapshot taken before it holds all they need."""
        return False

    def memory(self) -> dict[str, Any]:
        """What a snapshot keeps of this policy, as JSON values."""
        return {}

    def recall(self, memory: Mapping[str, Any]) -> None:  # noqa: B027
        """Take up the `memory` of a policy with the same settings."""
