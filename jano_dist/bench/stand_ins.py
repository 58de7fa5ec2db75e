"""Policies around policies: one whose map is shuffled, one that keeps the velocities it sees; and a model
that does not decode."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jano_dist.mesh import Mesh
from jano_dist.models import DiffusionModel
from jano_dist.policies import Policy, make_policy
from jano_dist.tokens.grid import Shape3, TokenGrid, expand_blocks
from jano_dist.tokens.schedule import StepKind


class _Around(Policy):
    """Policy: an inner one, asked for everything."""

    def __init__(self, inner: Policy) -> None:
        self._inner, self.forecasts = inner, inner.forecasts

    def decide(self, step: int) -> StepKind:
        return self._inner.decide(step)

    def choose(self, step: int) -> Tensor:
        return self._inner.choose(step)

    def observe(self, step: int, velocity: Tensor) -> Tensor | None:
        return self._inner.observe(step, velocity)

    def learn(self, step: int, error: float) -> None:
        self._inner.learn(step, error)

    def starts_afresh(self, step: int) -> bool:
        return self._inner.starts_afresh(step)

    def memory(self) -> dict[str, Any]:
        return self._inner.memory()

    def recall(self, memory: Mapping[str, Any]) -> None:
        self._inner.recall(memory)


class Rearranged(_Around):
    """Policy: an inner one whose complexity map uint8 [N] is rearranged before the engine sees it."""

    def __init__(self, inner: Policy, rearrange: Callable[[Tensor], Tensor]) -> None:
        super().__init__(inner)
        self._rearrange = rearrange

    def observe(self, step: int, velocity: Tensor) -> Tensor | None:
        levels = self._inner.observe(step, velocity)
        return None if levels is None else self._rearrange(levels)


class Recorded(_Around):
    """Policy: an inner one; every velocity [C, T, H, W] it observes is put into `kept`, in host memory."""

    def __init__(self, inner: Policy, kept: list[Tensor]) -> None:
        super().__init__(inner)
        kept.clear()
        self._kept = kept

    def observe(self, step: int, velocity: Tensor) -> Tensor | None:
        self._kept.append(velocity.to("cpu", torch.float32, copy=True))
        return self._inner.observe(step, velocity)


def random_maps(settings: dict[str, Any], *, steps: int, latent: Shape3, patch: Shape3) -> Policy:
    """Like `make_policy`; the policy's map has its blocks shuffled."""
    inner = make_policy(settings, steps=steps, latent=latent, patch=patch)
    return Rearranged(inner, shuffled_blocks(TokenGrid(latent, patch, tuple(settings["block"]))))


def recording(kept: list[Tensor]) -> Callable[..., Policy]:
    """Like `make_policy`, as often as it is called; each policy empties `kept` and fills it anew."""

    def make(settings: dict[str, Any], **facts: Any) -> Policy:
        return Recorded(make_policy(settings, **facts), kept)

    return make


def shuffled_blocks(grid: TokenGrid) -> Callable[[Tensor], Tensor]:
    """Deal the blocks' levels to random blocks, always the same ones; the shares stay exact.

    A block keeps its inner pattern. Those that the border cuts off are dealt among those of the same shape.
    """
    cells = _cells(grid)

    def rearrange(levels: Tensor) -> Tensor:
        dealt, generator = levels.clone(), torch.Generator().manual_seed(0)
        for alike in cells:  # int64 [blocks, tokens of a block]
            order = torch.randperm(len(alike), generator=generator)
            places = alike.to(levels.device)
            dealt[places] = levels[places[order.to(levels.device)]]
        return dealt

    return rearrange


def _cells(grid: TokenGrid) -> list[Tensor]:
    """The tokens of every block, int64 [blocks, tokens] for each shape that blocks have."""
    t, h, w = grid.blocks
    numbers = expand_blocks(torch.arange(t * h * w).reshape(t, h, w), grid.latent, grid.block)
    first = numbers[tuple(slice(None, None, edge) for edge in grid.patch)]  # a token is where it begins
    tokens = torch.arange(grid.count).reshape(grid.shape)
    found: dict[Shape3, list[Tensor]] = defaultdict(list)
    for number in first.unique():
        inside = first == number
        where = inside.nonzero()
        a, b, c = (where.amax(0) - where.amin(0) + 1).tolist()
        found[a, b, c].append(tokens[inside])
    return [torch.stack(alike) for alike in found.values()]


class Undecoded:
    """A loaded model whose latents stay latents."""

    def __init__(self, model: DiffusionModel) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def decode(self, latent: Tensor, mesh: Mesh) -> np.ndarray:
        """No frames."""
        return np.zeros((0, 1, 1, 3), np.uint8)
