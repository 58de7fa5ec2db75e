"""Caches that skip the whole stack of blocks: its last residual is added to the fresh embedding.

    computed:  x -> block 0 .. block L-1 -> y      residual = y - x (FBCache: y - output of block 0)
    skipped:   x -> x + residual                   then norm_out and proj_out with the current timestep

A rule decides, from what the coordinator's branch sees, and all branches follow.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from jano_dist.mesh import Mesh
from jano_dist.reuse.base import Agreement, BlockCache, Compute, Setting


class Rule(Protocol):
    """Whether a step is skipped. Asked once per step; keeps what it needs from step to step."""

    probes: bool  # whether it wants to see the first block's residual, which is then always computed

    def kept(self) -> Iterable[Tensor]:
        """What it keeps that is as large as hidden states."""

    def skips(self, step: int, embeddings: Mapping[str, Tensor], residual: Tensor | None) -> bool: ...


class StackCache(BlockCache):
    """Keeps the residual of the stack; see the module."""

    def __init__(self, setting: Setting, rule: Rule, agreement: Agreement) -> None:
        super().__init__(setting)
        self._rule, self._agreement = rule, agreement
        self._embeddings: dict[str, Tensor] = {}
        self._start: Tensor | None = None  # while the stack is computed: where its residual counts from
        self._residual: Tensor | None = None
        self._skips = False
        self._asks = False  # whether it is this branch that the rule is asked for

    def kept(self) -> Iterable[Tensor]:
        if self._residual is not None:
            yield self._residual
        if self._asks:
            yield from self._rule.kept()

    def begin(self, time: Tensor, projected: Tensor) -> None:
        super().begin(time, projected)
        self._embeddings = {"time": time, "projected": projected}

    def block(self, layer: int, x: Tensor, compute: Compute) -> Tensor:
        if layer:
            return x if self._skips else self._ended(layer, compute(x))
        probes = self._rule.probes
        start = compute(x) if probes else x
        self._skips = bool(self._agreement.ask(self.step, lambda: self._wish(start - x if probes else None)))
        if self._skips:
            assert self._residual is not None
            return start + self._residual
        self._start = start
        return self._ended(0, start if probes else compute(x))

    def _wish(self, residual: Tensor | None) -> bool:
        self._asks = True
        skips = self._rule.skips(self.step, self._embeddings, residual)
        return skips and self._residual is not None

    def _ended(self, layer: int, x: Tensor) -> Tensor:
        if layer == self.last:
            assert self._start is not None
            self._residual, self._start = x - self._start, None
        return x


class TeaCache:
    """Skip while the timestep embedding has changed little (Liu et al., arXiv 2411.19108).

    With e_i the embedding of step i, every step adds poly(mean |e_i - e_(i-1)| / mean |e_(i-1)|) to a sum;
    the step is skipped while the sum is below the threshold, and computing sets the sum to 0.

    Args:
        steps: of the generation. threshold: of the sum.
        coefficients: of the polynomial, highest power first. embedding: `time`, the embedding itself, or
            `projected`, what the blocks are modulated by.
        first_steps, last_steps: always computed.
    """

    def __init__(
        self,
        *,
        steps: int,
        threshold: float,
        coefficients: Sequence[float],
        embedding: str,
        first_steps: int,
        last_steps: int,
    ) -> None:
        self._threshold, self._coefficients, self._embedding = threshold, coefficients, embedding
        self._middle = range(first_steps, steps - last_steps)

    def caches(self, setting: Setting) -> list[BlockCache]:
        return _stacks(setting, _TeaRule(self._threshold, self._coefficients, self._embedding, self._middle))

    def starts_afresh(self, step: int) -> bool:
        return False  # the sum and the residual


class _TeaRule:
    probes = False

    def kept(self) -> Iterable[Tensor]:
        return ()

    def __init__(
        self, threshold: float, coefficients: Sequence[float], embedding: str, middle: range
    ) -> None:
        self._threshold, self._coefficients = threshold, coefficients
        self._embedding, self._middle = embedding, middle
        self._sum, self._before = 0.0, torch.empty(0)

    def skips(self, step: int, embeddings: Mapping[str, Tensor], residual: Tensor | None) -> bool:
        now, before = embeddings[self._embedding].float(), self._before
        self._before = now
        if step in self._middle and before.numel():
            change = float((now - before).abs().mean() / before.abs().mean())
            self._sum += _polynomial(self._coefficients, change)
            if self._sum < self._threshold:
                return True
        self._sum = 0.0
        return False


class MagCache:
    """Skip while the residual's magnitude is known to change little (Ma et al., arXiv 2506.09045).

    The ratios g_i = mean over tokens of |residual_i| / |residual_(i-1)| hardly depend on the prompt and are
    measured beforehand. After k skipped steps the residual's magnitude is off by the product of the ratios
    since; the step is skipped while the sum of |1 - product| over those steps, this one included, is at most
    the threshold and k is at most `max_skips`.

    Args:
        ratios: of all steps of some number of steps, the first 1.0; the nearest is taken for another number.
        retention: share of the steps at the start that are computed.
    """

    def __init__(
        self, *, steps: int, threshold: float, max_skips: int, retention: float, ratios: Sequence[float]
    ) -> None:
        self._threshold, self._max_skips = threshold, max_skips
        self._first = int(retention * steps + 0.5)
        self._ratios = nearest(ratios, steps)

    def caches(self, setting: Setting) -> list[BlockCache]:
        return _stacks(setting, _MagRule(self._threshold, self._max_skips, self._first, self._ratios))

    def starts_afresh(self, step: int) -> bool:
        return False


class _MagRule:
    probes = False

    def kept(self) -> Iterable[Tensor]:
        return ()

    def __init__(self, threshold: float, max_skips: int, first: int, ratios: Sequence[float]) -> None:
        self._threshold, self._max_skips = threshold, max_skips
        self._first, self._ratios = first, ratios
        self._forget()

    def _forget(self) -> None:
        self._product, self._error, self._skipped = 1.0, 0.0, 0

    def skips(self, step: int, embeddings: Mapping[str, Tensor], residual: Tensor | None) -> bool:
        if step < self._first:
            return False
        self._product *= self._ratios[step]
        self._error += abs(1 - self._product)
        self._skipped += 1
        if step and self._error <= self._threshold and self._skipped <= self._max_skips:
            return True
        self._forget()
        return False


class FirstBlockCache:
    """Skip the rest while the first block's residual has changed little (FBCache of ParaAttention,
    https://github.com/chengzeyi/ParaAttention, "Our Dynamic Caching").

    With r the first block's residual and p that of the last computed step, the other blocks are skipped
    where mean |r - p| / mean |p|, over all tokens of the coordinator's branch, is at most the threshold.
    """

    def __init__(self, *, steps: int, threshold: float) -> None:
        self._threshold = threshold

    def caches(self, setting: Setting) -> list[BlockCache]:
        return _stacks(setting, _FirstBlockRule(self._threshold, setting.mesh))

    def starts_afresh(self, step: int) -> bool:
        return False


class _FirstBlockRule:
    probes = True

    def __init__(self, threshold: float, mesh: Mesh) -> None:
        self._threshold, self._mesh = threshold, mesh
        self._before: Tensor | None = None

    def kept(self) -> Iterable[Tensor]:
        return () if self._before is None else (self._before,)

    def skips(self, step: int, embeddings: Mapping[str, Tensor], residual: Tensor | None) -> bool:
        assert residual is not None
        if self._before is not None:
            parts = (residual - self._before, self._before)
            own = torch.stack([part.abs().sum(dtype=torch.float64) for part in parts]).cpu()
            # The first ranks are those of the coordinator's branch; each has some of its tokens.
            change, size = self._mesh.collect(own)[: self._mesh.size("sequence")].sum(0).tolist()
            if change <= self._threshold * size:
                return True
        self._before = residual
        return False


class RatioRecorder(BlockCache):
    """Computes everything and measures MagCache's ratios, one per step; the first is 1."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.ratios: list[float] = []
        self._start = self._before = torch.empty(0)

    def block(self, layer: int, x: Tensor, compute: Compute) -> Tensor:
        if layer == 0:
            self._start = x
        y = compute(x)
        if layer == self.last:
            norms = (y - self._start).float().norm(dim=-1)
            self.ratios.append(float((norms / (self._before + 1e-8)).mean()) if self.ratios else 1.0)
            self._before = norms
        return y


def nearest(values: Sequence[float], length: int) -> list[float]:
    """`values` stretched to `length` of them, each the nearest in place (MagCache's own interpolation)."""
    if length == 1:
        return [values[-1]]
    scale = (len(values) - 1) / (length - 1)
    return [values[round(index * scale)] for index in range(length)]


def _stacks(setting: Setting, rule: Rule) -> list[BlockCache]:
    agreement = Agreement(setting.mesh)
    return [StackCache(setting, rule, agreement) for _ in range(setting.branches)]


def _polynomial(coefficients: Sequence[float], x: float) -> float:
    value = 0.0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value
