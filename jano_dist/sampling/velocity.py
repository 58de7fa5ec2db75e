"""The guided velocity of every token, and what it is taken for where a step does not compute it."""

from collections.abc import Mapping

import torch
from torch import Tensor


class VelocityRows:
    """Velocity rows [N, P] in natural token order; tokens that are not computed keep their last one, or go on
    in a straight line.

    With `forecasts` the last two computed rows of every token are kept. The line through them, in sigma, is
    its forecast. When the token is computed again it shows whether the forecast was nearer to the truth than
    the last row was, and only then the next forecast is trusted.

    Attributes:
        rows: [N, P], P values per token (patch positions x channels, in the model's order), as last computed.
        sigmas: float32 [N], noise level each row belongs to; NaN before the first update.
        earlier: [N, P] and `earlier_sigmas` [N], those before; NaN before the second update.
        trusted: bool [N], whether a token's last forecast was better than holding.
        error: how far the rows of the last update lay from the better of forecast and held row: the mean over
            tokens of that distance, over the mean length of the new rows (both L2). None before the first.
    """

    def __init__(
        self, tokens: int, width: int, dtype: torch.dtype, device: torch.device, *, forecasts: bool = False
    ) -> None:
        self.rows = torch.zeros(tokens, width, dtype=dtype, device=device)
        self.sigmas = torch.full((tokens,), float("nan"), device=device)
        self.forecasts = forecasts
        kept = tokens if forecasts else 0
        self.earlier = torch.full((kept, width), float("nan"), dtype=dtype, device=device)
        self.earlier_sigmas = torch.full((kept,), float("nan"), device=device)
        self.trusted = torch.zeros(kept, dtype=torch.bool, device=device)
        self.error: Tensor | None = None

    def update(self, index: Tensor, values: Tensor, sigma: float) -> None:
        """Overwrite the rows `index` int64 [n] with `values` [n, P], computed at `sigma`."""
        if self.forecasts:
            self._learn(index, values.float(), sigma)
        self.rows[index] = values.to(self.rows.dtype)
        self.sigmas[index] = sigma

    def at(self, sigma: float) -> Tensor:
        """Rows [N, P] at a noise level: forecast where that is trusted, else as last computed.

        Rows that were computed at `sigma` are returned bit by bit. Without `forecasts` all are.
        """
        if not self.forecasts:
            return self.rows
        moves = self.trusted & (self.sigmas != sigma)
        line = self._line(slice(None), sigma).to(self.rows.dtype)
        return torch.where(moves[:, None], line, self.rows)

    def _line(self, index: Tensor | slice, sigma: float) -> Tensor:
        """v1 + (v1 - v0) (sigma - sigma1) / (sigma1 - sigma0), float32 [n, P]; NaN where v0 is missing."""
        last, before = self.rows[index].float(), self.earlier[index].float()
        step = self.sigmas[index] - self.earlier_sigmas[index]
        return last + (last - before) * ((sigma - self.sigmas[index]) / step)[:, None]

    def _learn(self, index: Tensor, values: Tensor, sigma: float) -> None:
        """Compare what was computed with what would have been taken for it; the last rows become earlier."""
        if len(index) == 0:
            return
        by_line = (values - self._line(index, sigma)).norm(dim=1)
        by_holding = (values - self.rows[index].float()).norm(dim=1)
        better = by_line < by_holding  # false where there is no line yet, which is NaN
        self.trusted[index] = better
        self.error = torch.where(better, by_line, by_holding).mean() / values.norm(dim=1).mean()
        self.earlier[index] = self.rows[index]
        self.earlier_sigmas[index] = self.sigmas[index]

    def kept(self, prefix: str) -> dict[str, Tensor]:
        """What a snapshot keeps, by name."""
        names = ("rows", "sigmas", *(("earlier", "earlier_sigmas", "trusted") if self.forecasts else ()))
        return {prefix + name: getattr(self, name) for name in names}

    def restore(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        """Take up what `kept` gave."""
        for name in self.kept(prefix):
            setattr(self, name.removeprefix(prefix), tensors[name])
