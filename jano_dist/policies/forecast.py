"""The observed error decides when to compute: a policy of our own.

Skipped steps take every token's velocity from its last two computed ones (`VelocityRows`). At a computed
step it shows how far off that would have been. The error e of a step that comes n steps after the one before
grows about with the square of the distance (what a line leaves out is the second derivative), so the next
step whose error would be tau comes after n sqrt(tau / e) steps.
"""

import math
from collections.abc import Mapping
from typing import Any

from jano_dist.policies.base import Policy
from jano_dist.tokens.grid import Shape3
from jano_dist.tokens.schedule import StepKind, check_middle

_GROWTH = 2  # an interval is at most so many times the one before: one lucky step proves little


class ForecastPolicy(Policy):
    """Computes all tokens in a step, or none.

    Args:
        steps: of the generation. warmup, cooldown: first and last steps, which are all computed.
        tau: relative error that a forecast may have.
        max_interval: steps from one that is computed to the next, at most.

    Raises:
        ValueError: no step is left between warm-up and cool-down.
    """

    forecasts = True

    def __init__(self, steps: int, warmup: int, cooldown: int, tau: float, max_interval: int) -> None:
        check_middle(steps, warmup, cooldown)
        self._warmup, self._end = warmup, steps - cooldown
        self._tau, self._most = tau, max_interval
        self._last, self._next = -1, 0  # steps computed last, and to be computed next

    @classmethod
    def build(
        cls,
        *,
        steps: int,
        latent: Shape3,
        patch: Shape3,
        warmup: int,
        cooldown: int,
        tau: float,
        max_interval: int,
    ) -> "ForecastPolicy":
        """From the settings of the config; see `make_policy`."""
        return cls(steps, warmup, cooldown, tau, max_interval)

    def decide(self, step: int) -> StepKind:
        due = step >= self._next or step < self._warmup or step >= self._end
        return StepKind.FULL if due else StepKind.SKIP

    def learn(self, step: int, error: float) -> None:
        taken = step - self._last
        self._last = step
        reach = self._most if error == 0 else taken * math.sqrt(self._tau / error)
        self._next = step + max(1, min(int(reach), self._most, _GROWTH * taken))

    def starts_afresh(self, step: int) -> bool:
        return True

    def memory(self) -> dict[str, Any]:
        return {"last": self._last, "next": self._next}

    def recall(self, memory: Mapping[str, Any]) -> None:
        self._last, self._next = memory["last"], memory["next"]
