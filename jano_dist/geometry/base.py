"""Sizes of a model as the engine knows them. No torch at import."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from jano_dist.errors import UserError

Shape3 = tuple[int, int, int]


@dataclass(frozen=True)
class Geometry(ABC):
    """Sizes of a model, read from its config files before any weight is. Each family counts its FLOPs.

    Attributes:
        channels, out_channels: of the latent as the transformer takes it, and as it gives it.
        vae_stride: pixels per latent position, along (T, H, W). patch: positions per token.
        layers: with self-attention, each of `heads` heads of `head_dim`. ffn_dim: inside a layer's FFN.
        text_dim: of a text embedding. time_dim: of the sinusoidal timestep embedding.
        second_layers: how many of the layers have a second attention, of the tokens without the text.
        joint: whether text tokens are part of the sequence. Then every step computes them all.
        guidance: `free`: classifier-free, two branches above 1; `embedded`: an input of the model; `none`.
        experts: transformers that take turns by noise level: below `boundary`, a share of 1000 timesteps, the
            second one.
        images: whether it makes images: one frame.
        needs_image: whether a video begins with a picture that is given.
        first_frame: whether a picture is the latent's first frame itself, at a timestep of its own, 0.
        condition_channels: that are joined to the latent's. image_tokens: of the picture, extra keys of
            cross-attention, each `image_dim` wide.
    """

    # Whether policies can keep caches inside its blocks.
    block_caches: ClassVar[bool] = False
    # Whether some of the tokens can be computed; else a step computes all of them or none, and ranks share
    # branches only.
    regions: ClassVar[bool] = True

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
    second_layers: int = 0
    joint: bool = False
    guidance: Literal["free", "embedded", "none"] = "free"
    experts: int = 1
    boundary: float = 0.0
    images: bool = False
    needs_image: bool = False
    first_frame: bool = False
    condition_channels: int = 0
    image_tokens: int = 0
    image_dim: int = 0

    @property
    def takes_image(self) -> bool:
        """Whether a picture can be given."""
        return self.needs_image or self.first_frame

    @property
    def width(self) -> int:
        """Hidden size, heads x head_dim."""
        return self.heads * self.head_dim

    @property
    def attentions(self) -> int:
        """Self-attentions of a forward, each of which keeps keys and values."""
        return self.layers + self.second_layers

    @property
    def patch_positions(self) -> int:
        """Latent positions of a token."""
        return math.prod(self.patch)

    @property
    def row_width(self) -> int:
        """P, values per output row."""
        return self.out_channels * self.patch_positions

    def latent_shape(self, frames: int, height: int, width: int) -> Shape3:
        """(T, H, W) of the latent for a video of this size.

        Raises:
            UserError: a size the model cannot make; the sentence names the nearest that it can.
        """
        stride_t = self.vae_stride[0]
        if self.images and frames != 1:
            raise UserError(f"this model makes images, not {frames} frames: use --frames 1")
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

    def expert(self, timestep: float) -> int:
        """Which of the transformers runs at a timestep, 1000..0."""
        return int(self.experts > 1 and timestep < self.boundary * 1000)

    def check_experts(self, settings: Mapping[str, object]) -> None:
        """Make sure that what is set for a second expert finds one.

        Args:
            settings: by config key; None where a key is not set.

        Raises:
            UserError: it does not.
        """
        idle = [key for key, value in settings.items() if value is not None]
        if idle and self.experts == 1:
            raise UserError(f"{idle[0]} is of a second expert, which this model does not have: leave it out")

    def check_image(self, image: str | None) -> None:
        """Make sure that there is a picture where one is needed, and only there.

        Raises:
            UserError: it is not so.
        """
        if self.needs_image and not image:
            raise UserError(
                "this model makes videos of an image: give one with --image FILE, or for each line of a batch"
            )
        if image and not self.takes_image:
            raise UserError(
                f"this model makes videos of text alone: leave --image {image} out, or give an "
                "image-to-video model"
            )

    def text_tokens(self, max_sequence_length: int) -> int:
        """L, text tokens of a prompt."""
        return max_sequence_length

    def joint_tokens(self, max_sequence_length: int) -> int:
        """Text tokens that are part of the sequence."""
        return self.text_tokens(max_sequence_length) if self.joint else 0

    def branches(self, scale: float) -> int:
        """Forwards of a step: 2 with classifier-free guidance (diffusers' rule: a scale above 1)."""
        return 2 if self.guidance == "free" and scale > 1 else 1

    @abstractmethod
    def forward_flops(
        self,
        rows: int,
        tokens: int,
        text_tokens: int,
        *,
        kv_rows: int | None = None,
        text_rows: int | None = None,
    ) -> int:
        """Matrix-product FLOPs (2 per multiply-add) of one forward of one branch.

        `rows` tokens are computed and attend to `tokens`; keys and values are made of `kv_rows` (None: of
        those that are computed). What is done once per generation is left out. In a joint model the text
        tokens come on top of all three; `text_rows` of them are computed (None: all).
        """

    @abstractmethod
    def attention_flops(
        self, rows: int, tokens: int, text_tokens: int, *, text_rows: int | None = None
    ) -> int:
        """Of `forward_flops`, what attention kernels do: scores and weighted sums, of tokens and of text."""

    def reused_flops(self, blocks: Mapping[str, int], tokens: int, text_tokens: int) -> int:
        """FLOPs of one forward of one branch, of all tokens, through a cache inside the blocks.

        `blocks` are the rows computed over all layers, by part, as a step's record has them.
        """
        raise NotImplementedError(f"{type(self).__name__} has no caches inside the blocks")

    @abstractmethod
    def text_flops(self, text_tokens: int) -> int:
        """FLOPs of one branch that are done once per generation: what of the text is kept."""
