"""Caches of the outputs of attention and FFN in every block: forecast (TaylorSeer) or repeated (PAB)."""

import math
from collections.abc import Iterable
from itertools import chain

from torch import Tensor

from jano_dist.reuse.base import Agreement, BlockCache, Compute, Setting


class TaylorSeer:
    """Forecast every part's output from its last computed ones (Liu et al., arXiv 2503.06923).

    With F the output of a part at the last computed step and D^i its i-th finite difference over the
    computed steps, per step between them, a forecast k steps later is sum over i of D^i F k^i / i!, up to
    `order`. (Eq. 5 there; its N^i is the distance of computed steps, by which we divide when we take the
    differences, so that they may be uneven.)

    Args:
        interval: every so many steps all parts are computed. order: of the expansion; 0 repeats the last.
        first_steps: always computed.
    """

    def __init__(self, *, steps: int, interval: int, order: int, first_steps: int) -> None:
        self._interval, self._order, self._first_steps = interval, order, first_steps

    def caches(self, setting: Setting) -> list[BlockCache]:
        agreement = Agreement(setting.mesh)
        return [_TaylorCache(setting, self, agreement) for _ in range(setting.branches)]

    def starts_afresh(self, step: int) -> bool:
        return False  # the differences

    def forecasts(self, step: int) -> bool:
        """Whether no part of this step is computed."""
        since = step - (self._first_steps - 1)
        return since > 0 and since % self._interval != 0

    def differences(self, output: Tensor, before: list[Tensor], distance: int) -> list[Tensor]:
        """Finite differences up to the order, the output itself first; from those of the computed step
        before, so many steps ago."""
        made = [output]
        for old in before[: self._order]:
            made.append((made[-1] - old) / distance)
        return made


class _TaylorCache(BlockCache):
    def __init__(self, setting: Setting, method: TaylorSeer, agreement: Agreement) -> None:
        super().__init__(setting)
        self._method, self._agreement = method, agreement
        self._differences: dict[tuple[int, str], list[Tensor]] = {}
        self._forecasts, self._distance, self._computed = False, 0, -1

    def kept(self) -> Iterable[Tensor]:
        return chain.from_iterable(self._differences.values())

    def begin(self, time: Tensor, projected: Tensor) -> None:
        super().begin(time, projected)
        self._forecasts = bool(self._agreement.ask(self.step, lambda: self._method.forecasts(self.step)))
        self._distance = self.step - self._computed
        if not self._forecasts:
            self._computed = self.step

    def part(self, layer: int, name: str, x: Tensor, compute: Compute) -> Tensor:
        known = self._differences.get((layer, name), [])
        if not self._forecasts:
            output = super().part(layer, name, x, compute)
            self._differences[layer, name] = self._method.differences(output, known, self._distance)
            return output
        forecast = known[0]
        for order, difference in enumerate(known[1:], 1):
            forecast = forecast + difference * (self._distance**order / math.factorial(order))
        return forecast


class PyramidAttentionBroadcast:
    """Repeat attention's outputs for some steps (Zhao et al., arXiv 2408.12588).

    In the middle of the generation, where they change least, self-attention is computed every `self_range`
    steps and cross-attention, which changes less, every `cross_range` steps. Wan attends over time and space
    at once, so that the paper's spatial range, the smallest, is what its self-attention gets. FFNs are
    computed.

    Args:
        timesteps: (low, high) of the middle, exclusive, on the scheduler's scale of 1000.
    """

    def __init__(self, *, steps: int, self_range: int, cross_range: int, timesteps: tuple[int, int]) -> None:
        self._ranges = {"attn1": self_range, "attn2": cross_range}
        self._low, self._high = timesteps
        self._timesteps: list[float] = []

    def caches(self, setting: Setting) -> list[BlockCache]:
        self._timesteps = list(setting.timesteps)
        agreement = Agreement(setting.mesh)
        return [_BroadcastCache(setting, self, agreement) for _ in range(setting.branches)]

    def starts_afresh(self, step: int) -> bool:
        return self.repeats(step) == 0

    def repeats(self, step: int) -> int:
        """Which parts are repeated in this step: 1 self-attention, 2 cross-attention, 3 both."""
        if not self._low < self._timesteps[step] < self._high:
            return 0
        return (step % self._ranges["attn1"] != 0) + 2 * (step % self._ranges["attn2"] != 0)


_REPEATED = {"attn1": 1, "attn2": 2, "ffn": 0}  # bits of `repeats`


class _BroadcastCache(BlockCache):
    def __init__(self, setting: Setting, method: PyramidAttentionBroadcast, agreement: Agreement) -> None:
        super().__init__(setting)
        self._method, self._agreement, self._repeats = method, agreement, 0
        self._outputs: dict[tuple[int, str], Tensor] = {}
        self._first = setting.first

    def kept(self) -> Iterable[Tensor]:
        return self._outputs.values()

    def begin(self, time: Tensor, projected: Tensor) -> None:
        super().begin(time, projected)
        # The first step has nothing to repeat, whatever its timestep.
        wish = 0 if self.step == self._first else self._method.repeats(self.step)
        self._repeats = self._agreement.ask(self.step, lambda: wish)

    def part(self, layer: int, name: str, x: Tensor, compute: Compute) -> Tensor:
        if self._repeats & _REPEATED[name]:
            return self._outputs[layer, name]
        output = super().part(layer, name, x, compute)
        if _REPEATED[name]:
            self._outputs[layer, name] = output
        return output
