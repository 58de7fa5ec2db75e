"""ToCa: between full steps compute cross-attention and FFN of the tokens that matter most."""

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor
from torch.nn import functional as F

from jano_dist.reuse.base import Agreement, BlockCache, Compute, Setting


class ToCa:
    """Token-wise feature caching (Zou et al., arXiv 2410.05317), as its authors run it on video models.

    Every part keeps the output of each token. Every `interval` steps (cross-attention: `cross_interval`) it
    is computed for all tokens. In between self-attention repeats its outputs, cross-attention and FFN
    compute a share of the tokens and repeat the others'. A layer's score of a token, highest first, is

        s2 / |s2| + weight * s3 / interval

    with s2 = 1 + the entropy of its cross-attention over the text (mean over heads; as last computed), and
    s3 the steps since the part last computed it. The paper's s1 (its self-attention) and s4 (one token in
    every small square) are not in the authors' released video code either: s1 needs the attention map.

    Args:
        ratio, cross_ratio: shares of the tokens that FFN and cross-attention compute in between.
        first_steps: computed for all tokens.
    """

    def __init__(
        self,
        *,
        steps: int,
        interval: int,
        cross_interval: int,
        ratio: float,
        cross_ratio: float,
        weight: float,
        first_steps: int,
    ) -> None:
        self.interval, self._cross_interval, self._first_steps = interval, cross_interval, first_steps
        self.ratios, self.weight = {"ffn": ratio, "attn2": cross_ratio}, weight

    def caches(self, setting: Setting) -> list[BlockCache]:
        agreement = Agreement(setting.mesh)
        return [_TokenCache(setting, self, agreement) for _ in range(setting.branches)]

    def starts_afresh(self, step: int) -> bool:
        return self.partial(step) == 0

    def partial(self, step: int) -> int:
        """Which parts are not computed for all tokens: 1 self-attention and FFN, 2 cross-attention."""
        if step < self._first_steps:
            return 0
        return (step % self.interval != 0) + 2 * (step % self._cross_interval != 0)


_CUT = {"attn1": 1, "attn2": 2, "ffn": 1}  # bits of `partial`


class _TokenCache(BlockCache):
    listens = True

    def __init__(self, setting: Setting, method: ToCa, agreement: Agreement) -> None:
        super().__init__(setting)
        self._method, self._agreement, self._partial = method, agreement, 0
        self._outputs: dict[tuple[int, str], Tensor] = {}
        self._ages: dict[tuple[int, str], Tensor] = {}  # int32 [n], steps since it was computed
        self._entropies: dict[int, Tensor] = {}  # float32 [n] by layer
        self._rows: Tensor | None = None  # of the cross-attention that runs; None: all
        self._first = setting.first

    def kept(self) -> Iterable[Tensor]:
        return chain(self._outputs.values(), self._ages.values(), self._entropies.values())

    def begin(self, time: Tensor, projected: Tensor) -> None:
        super().begin(time, projected)
        wish = 0 if self.step == self._first else self._method.partial(self.step)
        self._partial = self._agreement.ask(self.step, lambda: wish)

    def part(self, layer: int, name: str, x: Tensor, compute: Compute) -> Tensor:
        place = (layer, name)
        if not self._partial & _CUT[name]:
            self._rows = None
            self._outputs[place] = super().part(layer, name, x, compute)
            self._ages[place] = torch.zeros(x.shape[1], dtype=torch.int32, device=x.device)
            return self._outputs[place]
        count = int(self._method.ratios.get(name, 0) * x.shape[1])
        self._ages[place] += 1
        if count:
            rows = self._scores(layer, name).topk(count).indices
            self._rows = rows
            fresh = super().part(layer, name, x.index_select(1, rows), compute)
            # A new tensor: the one before is part of what the caller has already added up.
            self._outputs[place] = self._outputs[place].index_copy(1, rows, fresh)
            self._ages[place][rows] = 0
        return self._outputs[place]

    def attended(self, layer: int, q_nhd: Tensor, k_nhd: Tensor) -> None:
        entropies = cross_entropies(q_nhd, k_nhd)
        self.work["scores"] += len(q_nhd)
        if self._rows is None:
            self._entropies[layer] = entropies
        else:
            self._entropies[layer][self._rows] = entropies

    def _scores(self, layer: int, name: str) -> Tensor:
        importance = F.normalize(1 + self._entropies[layer], dim=0)
        return importance + self._method.weight * self._ages[layer, name] / self._method.interval


def cross_entropies(q_nhd: Tensor, k_nhd: Tensor) -> Tensor:
    """Entropy of every token's attention over the text, mean over the heads: [n, H, D], [L, H, D] -> [n]."""
    scale = q_nhd.shape[-1] ** -0.5
    mean = torch.zeros(len(q_nhd), len(k_nhd), device=q_nhd.device)
    for q, k in zip(q_nhd.unbind(1), k_nhd.unbind(1), strict=True):  # one head at a time: [n, L] is large
        mean += (q.float() @ k.float().T * scale).softmax(-1)
    mean /= q_nhd.shape[1]
    return -(mean * (mean + 1e-7).log()).sum(-1)
