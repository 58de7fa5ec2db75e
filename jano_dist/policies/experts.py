"""Two experts that take turns: a policy for each, as nothing of the first's steps is true of the second's."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from jano_dist.policies.base import Policy
from jano_dist.policies.full import FullPolicy
from jano_dist.tokens.schedule import StepKind


class TwoExperts(Policy):
    """One policy before the step `switch`, another one from there on, which counts its steps from there."""

    def __init__(self, first: Policy, second: Policy, switch: int) -> None:
        self._first, self._second, self._switch = first, second, switch
        self.forecasts = first.forecasts or second.forecasts

    @classmethod
    def build(
        cls, make: Callable[..., Policy], settings: Mapping[str, Any], *, steps: int, switch: int
    ) -> "TwoExperts":
        """Of one policy's settings.

        The first cools down only with the generation. The second has a warm-up of its own, as long as the
        first's, or with `warmup_2`; a jano without one goes on with the first one's map.
        A part that is too short for its policy is computed in full.

        Args:
            make: settings, steps -> policy. steps: of the generation. switch: the second expert's first step.
        """
        early, late = dict(settings), dict(settings)
        if "cooldown" in early:
            early["cooldown"] = 0
        first = _made(make, early, switch)
        if settings["name"] == "jano":
            mapped = not isinstance(first, FullPolicy)
            late["warmup"] = settings["warmup_2"] or (0 if mapped else settings["warmup"])
        return cls(first, _made(make, late, steps - switch), switch)

    def _at(self, step: int) -> tuple[Policy, int]:
        return (self._first, step) if step < self._switch else (self._second, step - self._switch)

    def decide(self, step: int) -> StepKind:
        policy, own = self._at(step)
        return policy.decide(own)

    def choose(self, step: int) -> Tensor:
        policy, own = self._at(step)
        return policy.choose(own)

    def observe(self, step: int, velocity: Tensor) -> Tensor | None:
        policy, own = self._at(step)
        return policy.observe(own, velocity)

    def learn(self, step: int, error: float) -> None:
        policy, own = self._at(step)
        policy.learn(own, error)

    def starts_afresh(self, step: int) -> bool:
        policy, own = self._at(step)
        return policy.starts_afresh(own)

    def memory(self) -> dict[str, Any]:
        return {"first": self._first.memory(), "second": self._second.memory()}

    def recall(self, memory: Mapping[str, Any]) -> None:
        self._first.recall(memory["first"])
        self._second.recall(memory["second"])


def _made(make: Callable[..., Policy], settings: Mapping[str, Any], steps: int) -> Policy:
    warmup = settings.get("warmup", 0)
    if "warmup" in settings and steps <= warmup + settings.get("cooldown", 0):
        return FullPolicy()
    return make(settings, steps=steps)
