"""The Jano method (arXiv 2603.00519): score regions in the warm-up, compute each as often as it needs."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from jano_dist.policies.base import Policy
from jano_dist.tokens.complexity import block_scores, enhance, last_change, smooth_spread, token_levels
from jano_dist.tokens.grid import Shape3, TokenGrid
from jano_dist.tokens.schedule import Schedule, StepKind

Score = Callable[[Tensor, Shape3], Tensor]


class JanoPolicy(Policy):
    """Keeps the warm-up velocities, makes the map at the end of the warm-up, then follows the schedule.

    Args:
        schedule: step -> kind.
        grid: the latent's tokens and blocks.
        score: (velocities [S, C, T, H, W], block) -> block scores [nt, nh, nw].
        levels: block scores -> complexity map uint8 [N].
        forecasts: see `Policy`.
    """

    def __init__(
        self,
        schedule: Schedule,
        grid: TokenGrid,
        score: Score,
        levels: Callable[[Tensor], Tensor],
        *,
        forecasts: bool = False,
    ) -> None:
        self.schedule, self.grid, self.forecasts = schedule, grid, forecasts
        self._score, self._levels = score, levels
        self._velocities: list[Tensor] = []

    @classmethod
    def build(
        cls,
        *,
        steps: int,
        latent: Shape3,
        patch: Shape3,
        score: str,
        block: Shape3,
        temporal_weight: float,
        warmup: int,
        cooldown: int,
        static_threshold: float,
        static_interval: int,
        moderate_threshold: float,
        moderate_interval: int,
        enhance: Mapping[str, Any],
        velocity: str = "hold",
    ) -> "JanoPolicy":
        """From the settings of the config; see `make_policy`."""
        schedule = Schedule(steps, warmup, cooldown, static_interval, moderate_interval)
        if warmup == 1:
            raise ValueError("the complexity map needs 2 warm-up steps or more: raise policy.warmup")
        if static_threshold > moderate_threshold:
            raise ValueError(
                f"policy.static_threshold {static_threshold} is above policy.moderate_threshold "
                f"{moderate_threshold}: give them in order"
            )
        scores: dict[str, Score] = {
            "last_change": last_change,
            "smooth_spread": smooth_spread,
            "published": partial(block_scores, temporal_weight=temporal_weight),
        }
        grid = TokenGrid(latent, patch, block)
        levels = partial(
            _levels, grid=grid, enhancement=enhance, thresholds=(static_threshold, moderate_threshold)
        )
        return cls(schedule, grid, scores[score], levels, forecasts=velocity == "forecast")

    def decide(self, step: int) -> StepKind:
        return self.schedule.kind(step)

    def starts_afresh(self, step: int) -> bool:
        schedule = self.schedule
        cools_down = step >= schedule.steps - schedule.cooldown  # from here on nobody reads the caches
        return step >= schedule.warmup and (cools_down or schedule.kind(step) is StepKind.REFRESH)

    def observe(self, step: int, velocity: Tensor) -> Tensor | None:
        if step >= self.schedule.warmup:
            return None
        self._velocities.append(velocity.clone())
        if step < self.schedule.warmup - 1 or self.schedule.warmup == self.schedule.steps:
            return None
        history, self._velocities = torch.stack(self._velocities), []
        return self._levels(self._score(history, self.grid.block))


def _levels(
    scores: Tensor, grid: TokenGrid, enhancement: Mapping[str, Any], thresholds: tuple[float, float]
) -> Tensor:
    return token_levels(enhance(scores, **enhancement), grid, *thresholds)
