"""Region-Adaptive Sampling (RAS; Liu et al., arXiv 2502.10389): the model's focus, seen in its last output.

Where the predicted noise varies little over the channels the main subject is, and it is computed; the rest
keeps its noise. The paper: "fast-update regions exhibit noticeably lower noise variance than the background".
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from jano_dist.policies.choosing import ChoosingPolicy, highest
from jano_dist.tokens.budget import step_counts
from jano_dist.tokens.grid import Shape3, TokenGrid, token_values


class RasPolicy(ChoosingPolicy):
    """A share of the tokens per step, chosen by R = mean over the patch of std(v) x exp(k D), equation 1.

    std is over the channels of one position (with Bessel's correction, as in the authors' code,
    github.com/microsoft/RAS), v the guided velocity after the step before (kept where it was not computed),
    D how often the token was dropped; as in their code, no step sets D back.

    In equation 1 D raises R. In the authors' code tokens of high R are dropped (`high_ratio` 1, its default),
    so that a dropped token is dropped again all the sooner, against the paper's words: D is there to bring
    such tokens back, the more so the larger k. Here it does that at either end: with `active` low the
    lowest std x exp(-k D) are computed, with `active` high the highest R. (Their example scripts use
    `high_ratio` .3 and k 1, which drops some of both ends.)

    Args:
        tokens, warmup, counts: see `ChoosingPolicy`. patch: positions per token.
        starvation: k. active: the end of the deviations that is computed, low or high.
    """

    def __init__(
        self, tokens: int, warmup: int, counts: list[int], patch: Shape3, starvation: float, active: str
    ) -> None:
        super().__init__(tokens, warmup, counts)
        self._patch, self._starvation = patch, starvation
        self._sign = -1 if active == "low" else 1
        self._drops = torch.zeros(tokens, dtype=torch.int64)
        self._deviation = torch.zeros(tokens)

    @classmethod
    def build(cls, *, steps: int, latent: Shape3, patch: Shape3, **options: Any) -> "RasPolicy":
        """From the settings of the config; see `make_policy`."""
        tokens = TokenGrid(latent, patch, (1, 1, 1)).count
        counts = step_counts({"name": "ras", **options}, steps=steps, tokens=tokens)
        return cls(tokens, options["warmup"], counts, patch, options["starvation"], options["active"])

    def look(self, step: int, velocity: Tensor) -> None:
        self._deviation = token_values(velocity.float(), self._patch).std(dim=2).mean(dim=1).cpu()

    def choose(self, step: int) -> Tensor:
        # The logarithm keeps the order and does not overflow.
        score = self._sign * self._deviation.double().log() + self._starvation * self._drops
        chosen = highest(score, self._counts[step - self._warmup])
        self._drops += ~chosen
        return chosen

    def starts_afresh(self, step: int) -> bool:
        return step <= self._warmup or self._cools_down(step) or self._refills(step)

    def memory(self) -> dict[str, Any]:
        return {"drops": self._drops.tolist()}

    def recall(self, memory: Mapping[str, Any]) -> None:
        self._drops = torch.tensor(memory["drops"], dtype=torch.int64)
