"""A policy that follows a given map, for maps that a video seldom leads to."""

import torch
import torch.distributed as dist

from jano_dist.policies import Policy
from jano_dist.tokens.schedule import StepKind

CHOSEN = 0.4  # share of the tokens that a step of this kind computes
CHOOSING = ("full", "refresh", "chosen", "chosen", "skip", "active", "chosen", "refresh", "chosen")
MAP_KINDS = ("full", "refresh", "active", "moderate", "full", "active", "refresh", "moderate")


class FollowMap(Policy):
    """Policy: steps of these kinds on a map of these sizes, tokens in random order.

    Only the coordinator may ask it anything.
    """

    def __init__(self, active, moderate, static, kinds=MAP_KINDS):
        self.kinds = kinds
        levels = torch.tensor([3] * active + [2] * moderate + [1] * static, dtype=torch.uint8)
        self.levels = levels[torch.randperm(len(levels), generator=torch.Generator().manual_seed(3))]

    def __call__(self, settings, **facts):
        return self

    def choose(self, step):
        assert not dist.is_initialized() or dist.get_rank() == 0
        random = torch.rand(len(self.levels), generator=torch.Generator().manual_seed(step))
        return random < CHOSEN

    def decide(self, step):
        assert not dist.is_initialized() or dist.get_rank() == 0
        return StepKind(self.kinds[step])

    def observe(self, step, velocity):
        assert not dist.is_initialized() or dist.get_rank() == 0
        return self.levels if step == 0 else None
