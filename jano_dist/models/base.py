"""What the engine knows of a model: its geometry, its protocol, and what it keeps per branch.

Shapes: C channels, latent T x H x W, N tokens, n computed rows, P values per output row
(patch positions x output channels), L text tokens.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from jano_dist.attention.distributed import Attend
from jano_dist.cache import Cache
from jano_dist.errors import UserError
from jano_dist.mesh import Mesh
from jano_dist.tokens.grid import Shape3


@dataclass(frozen=True)
class Geometry:
    """Sizes of a model, read from its config files before any weight is."""

    channels: int
    out_channels: int
    vae_stride: Shape3
    patch: Shape3
    layers: int
    heads: int
    head_dim: int
    ffn_dim: int
    text_dim: int
    time_dim: int

    @property
    def width(self) -> int:
        """Hidden size, heads x head_dim."""
        return self.heads * self.head_dim

    @property
    def row_width(self) -> int:
        """P, values per output row."""
        return self.out_channels * math.prod(self.patch)

    def latent_shape(self, frames: int, height: int, width: int) -> Shape3:
        """(T, H, W) of the latent for a video of this size.

        Raises:
            UserError: a size the model cannot make; the sentence names the nearest that it can.
        """
        stride_t = self.vae_stride[0]
        if frames < 1 or (frames - 1) % stride_t:
            below = max(1, (frames - 1) // stride_t * stride_t + 1)
            raise UserError(
                f"frames must be {stride_t}n+1, not {frames}: "
                f"use --frames {below} or --frames {below + stride_t}"
            )
        for name, size, axis in (("height", height, 1), ("width", width, 2)):
            edge = self.vae_stride[axis] * self.patch[axis]
            if size < edge or size % edge:
                below = max(edge, size // edge * edge)
                raise UserError(
                    f"{name} must be divisible by {edge} (VAE stride {self.vae_stride[axis]} x patch "
                    f"{self.patch[axis]}), not {size}: use --{name} {below} or --{name} {below + edge}"
                )
        return (frames - 1) // stride_t + 1, height // self.vae_stride[1], width // self.vae_stride[2]

    def forward_flops(self, rows: int, tokens: int, text_tokens: int) -> int:
        """Matrix-product FLOPs (2 per multiply-add) of one forward of one branch.

        `rows` tokens are computed and attend to `tokens`; the text K/V are there already. Counted
        from the layer sizes; `tests/parity/test_flops.py` checks it against torch's own counter.
        """
        d, f = self.width, self.ffn_dim
        projections = 2 * rows * d * d * 6  # q, k, v, o of self-attention; q, o of cross-attention
        attention = 4 * rows * d * (tokens + text_tokens)
        ffn = 4 * rows * d * f
        embed = 2 * tokens * d * self.channels * math.prod(self.patch)  # the patch embedding is never cut
        time = 2 * (self.time_dim * d + d * d + 6 * d * d)
        return self.layers * (projections + attention + ffn) + embed + time + 2 * rows * d * self.row_width

    def text_flops(self, text_tokens: int) -> int:
        """FLOPs of one branch's text projections and cross-attention K/V, done once per generation."""
        d = self.width
        return 2 * text_tokens * (self.text_dim * d + d * d + self.layers * 2 * d * d)


@dataclass
class TextKV:
    """Cross-attention keys and values of one layer: computed by the first forward, then kept."""

    kept: tuple[Tensor, Tensor] | None = None

    def get(self, project: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The kept pair [L, H, D]; calls `project` the first time."""
        if self.kept is None:
            self.kept = project()
        return self.kept


@dataclass
class Branch:
    """One branch (cond or uncond) of one generation: its text and what is constant over the steps."""

    text: Tensor  # [1, L, text_dim]
    layers: list[TextKV] = field(default_factory=list)

    @property
    def text_input(self) -> Tensor:
        """What the transformer is given as text: nothing once every layer keeps its keys and values."""
        done = bool(self.layers) and all(layer.kept is not None for layer in self.layers)
        return self.text[:, :0] if done else self.text


class VideoModel(Protocol):
    """A text-to-video model as the engine sees it. Holds weights, nothing of a generation."""

    geometry: Geometry
    device: torch.device
    dtype: torch.dtype

    def notes(self, prompt: str) -> list[str]:
        """Sentences on what the text encoder will not see of a prompt: unknown words, a cut-off end."""

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings [prompts, L, text_dim]; the text encoder is in memory only meanwhile."""

    def branch(self, text: Tensor) -> Branch:
        """A branch for the embeddings [1, L, text_dim] of one prompt."""

    def noise(self, latent: Shape3, seed: int) -> Tensor:
        """The initial latent float32 [C, T, H, W]; drawn on the CPU, so the same on any device."""

    def scheduler(self, steps: int, shift: float | None) -> Any:
        """A fresh diffusers scheduler with its timesteps set."""

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor,
        branch: Branch,
        rows: Tensor,
        cache: Cache,
        attend: Attend = ...,
    ) -> Tensor:
        """Run the transformer for the tokens `rows` int64 [n] of `latent` [C, T, H, W].

        Writes to `cache` and, the first time, to `branch.layers`. `attend` does the self-attention;
        left out, the tokens of this process are all there are.

        Returns:
            [n, P] output rows, in the order of `rows`.
        """

    def unpatchify(self, rows: Tensor, latent: Shape3) -> Tensor:
        """Output rows of all tokens [N, P] in natural order -> [C, T, H, W]."""

    def decode(self, latent: Tensor, mesh: Mesh) -> np.ndarray:
        """[C, T, H, W], the same on every rank -> frames uint8 [frames, height, width, 3] on the
        coordinator, none [0, height, width, 3] on other ranks."""
