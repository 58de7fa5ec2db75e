"""Astraea (Liu et al., arXiv 2506.05096, ICLR 2026): a budget of tokens per step, for those that need it.

As published, a token's score is w_a S_sig + w_b S_penalty, with w_a = 1 and w_b = .5: S_penalty = e^n, n the
steps in a row in which it was not selected, and S_sig = S_LSE x delta, the attention's log-sum-exp of the
step before times the change of the token since it was last computed. The tokens with the highest score are
computed, as many as the step's budget says; budgets are multiples of 10 % per step, which an evolutionary
search finds offline.

What differs here. Astraea chooses before every block and keeps the block's outputs; this policy chooses once
per step for all blocks, and knows no attention: S_LSE is left out. The change is that of the token's output,
the L2 norm between its last two computed velocities, over the mean of all tokens (a scale is not stated; it
must be one to which e^n compares). Astraea makes keys and values of all tokens anew, here those of skipped
tokens are kept. Budgets are given, not searched for.
"""

from typing import Any

import torch
from torch import Tensor

from jano_dist.policies.choosing import ChoosingPolicy, highest
from jano_dist.tokens.budget import step_counts
from jano_dist.tokens.grid import Shape3, TokenGrid, token_values
from jano_dist.tokens.schedule import StepKind

_OLDEST = 300  # steps: exp of more would overflow, and the oldest come first anyway


class AstraeaPolicy(ChoosingPolicy):
    """So many tokens per step, by their change and by how long they were not computed.

    Args:
        tokens, warmup, counts: see `ChoosingPolicy`. patch: positions per token.
        penalty: w_b, the weight of e^n.
    """

    def __init__(self, tokens: int, warmup: int, counts: list[int], patch: Shape3, penalty: float) -> None:
        super().__init__(tokens, warmup, counts)
        self._patch, self._penalty = patch, penalty
        self._last: Tensor | None = None  # velocity [N, values] as last computed
        self._change = torch.zeros(tokens)
        self._age = torch.zeros(tokens, dtype=torch.int64)
        self._computed = torch.ones(tokens, dtype=torch.bool)

    @classmethod
    def build(cls, *, steps: int, latent: Shape3, patch: Shape3, **options: Any) -> "AstraeaPolicy":
        """From the settings of the config; see `make_policy`."""
        tokens = TokenGrid(latent, patch, (1, 1, 1)).count
        counts = step_counts({"name": "astraea", **options}, steps=steps, tokens=tokens)
        return cls(tokens, options["warmup"], counts, patch, options["penalty"])

    def decide(self, step: int) -> StepKind:
        kind = super().decide(step)
        if kind is not StepKind.CHOSEN:
            self._computed = torch.full((self._tokens,), kind is not StepKind.SKIP)
        return kind

    def choose(self, step: int) -> Tensor:
        change = self._change.double() / self._change.double().mean().clamp_min(1e-300)
        score = change + self._penalty * self._age.clamp_max(_OLDEST).double().exp()
        self._computed = highest(score, self._counts[step - self._warmup])
        return self._computed

    def look(self, step: int, velocity: Tensor) -> None:
        rows = token_values(velocity.float(), self._patch).flatten(1).cpu()
        if self._last is not None:
            change = (rows - self._last).norm(dim=1)
            self._change = torch.where(self._computed, change, self._change)
        self._last = rows.clone()
        self._age = torch.where(self._computed, 0, self._age + 1)

    def starts_afresh(self, step: int) -> bool:
        return step < self._warmup or self._cools_down(step)  # a refresh needs the velocities before it
