"""Every step computes every token: the reference all others are compared with."""

from jano_dist.policies.base import Policy
from jano_dist.tokens.grid import Shape3
from jano_dist.tokens.schedule import StepKind


class FullPolicy(Policy):
    """Nothing is ever skipped."""

    @classmethod
    def build(cls, *, steps: int, latent: Shape3, patch: Shape3) -> "FullPolicy":
        """See `make_policy`; a full policy has no settings."""
        return cls()

    def decide(self, step: int) -> StepKind:
        return StepKind.FULL

    def starts_afresh(self, step: int) -> bool:
        return True
