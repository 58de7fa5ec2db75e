"""Heterogeneous Step Allocation (HSA; Chu and Patel, arXiv 2605.06892): every token has its number of steps.

Public of it, and done here: tokens are put into groups by how much their velocity changes, and each group has
a step divisor, so that it is computed in every d-th step; computed tokens attend to the keys and values of
all, of which theirs are new ("KV-cache synchronization"); the others go on with their last velocity ("cached
Euler update"; here the scheduler is the model's own); the first and the last steps compute all tokens.

Not found, and assumed: that the change is taken once, between the last two steps of the warm-up, as the L1
norm of the difference over that of the earlier velocity; the groups' shares, divisors and the warm-up; that
groups keep in phase, so that all meet in the first step after the warm-up.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from jano_dist.policies.choosing import ChoosingPolicy
from jano_dist.tokens.budget import group_sizes, step_counts
from jano_dist.tokens.grid import Shape3, TokenGrid, token_values

_SMALLEST = 1e-12  # L1 norm of a token that has no velocity


class HsaPolicy(ChoosingPolicy):
    """Groups of tokens, those that change most first, each computed in every so many steps.

    Args:
        tokens, warmup, counts: see `ChoosingPolicy`. patch: positions per token.
        sizes: of the groups. divisors: steps from one that computes a group to the next, of each.
    """

    def __init__(
        self,
        tokens: int,
        warmup: int,
        counts: list[int],
        patch: Shape3,
        sizes: Sequence[int],
        divisors: Sequence[int],
    ) -> None:
        super().__init__(tokens, warmup, counts)
        self._patch = patch
        self._by_rank = torch.tensor(divisors).repeat_interleave(torch.tensor(sizes))
        self._before: Tensor | None = None  # the velocity of the last warm-up step but one
        self._divisor: Tensor | None = None  # of each token

    @classmethod
    def build(cls, *, steps: int, latent: Shape3, patch: Shape3, **options: Any) -> "HsaPolicy":
        """From the settings of the config; see `make_policy`."""
        tokens = TokenGrid(latent, patch, (1, 1, 1)).count
        counts = step_counts({"name": "hsa", **options}, steps=steps, tokens=tokens)
        sizes = group_sizes(options["shares"], tokens)
        return cls(tokens, options["warmup"], counts, patch, sizes, options["divisors"])

    def look(self, step: int, velocity: Tensor) -> None:
        if step == self._warmup - 2:
            self._before = velocity.clone()
        if step == self._warmup - 1:
            assert self._before is not None
            change = self._l1(velocity - self._before) / self._l1(self._before).clamp_min(_SMALLEST)
            order = torch.argsort(change, descending=True, stable=True).cpu()
            self._divisor = torch.empty_like(self._by_rank)
            self._divisor[order] = self._by_rank
            self._before = None

    def _l1(self, velocity: Tensor) -> Tensor:
        return token_values(velocity.float(), self._patch).abs().sum(dim=(1, 2))

    def choose(self, step: int) -> Tensor:
        assert self._divisor is not None
        return (step - self._warmup) % self._divisor == 0

    def starts_afresh(self, step: int) -> bool:
        unseen = step < self._warmup - 1  # both velocities are still to come
        return unseen or self._cools_down(step) or self._refills(step)

    def memory(self) -> dict[str, Any]:
        return {} if self._divisor is None else {"divisors": self._divisor.tolist()}

    def recall(self, memory: Mapping[str, Any]) -> None:
        if "divisors" in memory:
            self._divisor = torch.tensor(memory["divisors"])
