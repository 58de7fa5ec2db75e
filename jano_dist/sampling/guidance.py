"""Classifier-free guidance."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a wrong mesh is refused before torch is imported
    from torch import Tensor


def guidance_on(scale: float) -> bool:
    """Whether a guidance scale needs the uncond branch (diffusers' rule: above 1)."""
    return scale > 1.0


def guide(outputs: "Sequence[Tensor]", scale: float) -> "Tensor":
    """Combine branch outputs `[cond]` or `[cond, uncond]`, any shape, into the guided velocity.

    uncond + scale * (cond - uncond); Ho and Salimans, "Classifier-free diffusion guidance" (2022).
    """
    if len(outputs) == 1:
        return outputs[0]
    cond, uncond = outputs
    return uncond + scale * (cond - uncond)
