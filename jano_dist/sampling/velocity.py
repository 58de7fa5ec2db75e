"""The guided velocity of every token, and the sigma each row was computed at."""

import torch
from torch import Tensor


class VelocityRows:
    """Velocity rows [N, P] in natural token order; skipped tokens keep their last one.

    It knows at which sigma each row was computed, so that a forecast can replace holding.

    Attributes:
        rows: [N, P], P values per token (patch positions x channels, in the model's order).
        sigmas: float32 [N], noise level each row belongs to; NaN before the first update.
    """

    def __init__(self, tokens: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rows = torch.zeros(tokens, width, dtype=dtype, device=device)
        self.sigmas = torch.full((tokens,), float("nan"), device=device)

    def update(self, index: Tensor, values: Tensor, sigma: float) -> None:
        """Overwrite the rows `index` int64 [n] with `values` [n, P], computed at `sigma`."""
        self.rows[index] = values.to(self.rows.dtype)
        self.sigmas[index] = sigma
