"""Every step computes every token: the reference all others are compared with."""

from torch import Tensor

from jano_dist.tokens.grid import Shape3
from jano_dist.tokens.schedule import StepKind


class FullPolicy:
    """Nothing is ever skipped."""

    @classmethod
    def build(cls, *, steps: int, latent: Shape3, patch: Shape3) -> "FullPolicy":
        """See `make_policy`; a full policy has no settings."""
        return cls()

    def decide(self, step: int) -> StepKind:
        return StepKind.FULL

    def observe(self, step: int, velocity: Tensor) -> Tensor | None:
        return None

    def starts_afresh(self, step: int) -> bool:
        return True
