"""Every n-th step computes all tokens, the others none: the control that every cleverer policy must beat."""

from jano_dist.policies.base import Policy
from jano_dist.tokens.grid import Shape3
from jano_dist.tokens.schedule import StepKind, check_middle


class UniformPolicy(Policy):
    """After the warm-up `interval` - 1 steps are skipped and one is computed, over and over.

    Args:
        steps: of the generation. warmup, cooldown: first and last steps, which are all computed.
        forecasts: see `Policy`.

    Raises:
        ValueError: no step is left between warm-up and cool-down.
    """

    def __init__(self, steps: int, warmup: int, cooldown: int, interval: int, *, forecasts: bool) -> None:
        check_middle(steps, warmup, cooldown)
        self._warmup, self._end, self._interval = warmup, steps - cooldown, interval
        self.forecasts = forecasts

    @classmethod
    def build(
        cls,
        *,
        steps: int,
        latent: Shape3,
        patch: Shape3,
        warmup: int,
        cooldown: int,
        interval: int,
        velocity: str,
    ) -> "UniformPolicy":
        """From the settings of the config; see `make_policy`."""
        return cls(steps, warmup, cooldown, interval, forecasts=velocity == "forecast")

    def decide(self, step: int) -> StepKind:
        between = self._warmup <= step < self._end
        due = (step - self._warmup + 1) % self._interval == 0
        return StepKind.FULL if due or not between else StepKind.SKIP

    def starts_afresh(self, step: int) -> bool:
        return True  # velocity rows are kept in snapshots
