"""Index arithmetic between latent positions, tokens (patches) and blocks."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Shape3 = tuple[int, int, int]


@dataclass(frozen=True)
class TokenGrid:
    """How one latent is cut: into tokens for the transformer, into blocks for the score.

    Attributes:
        latent: (T, H, W), the latent's size in positions.
        patch: (pt, ph, pw), the positions one token covers; (1, 2, 2) for Wan.
        block: (bt, bh, bw), the box of positions over which complexity is scored.

    Raises:
        ValueError: the latent cannot be cut into whole patches, or a block edge does not fit in it.
    """

    latent: Shape3
    patch: Shape3
    block: Shape3

    def __post_init__(self) -> None:
        if any(size % edge for size, edge in zip(self.latent, self.patch, strict=True)):
            raise ValueError(
                f"a latent of {self.latent} cannot be cut into patches of {self.patch}: "
                "choose a size that is divisible by VAE stride times patch"
            )
        if any(not 1 <= edge <= size for size, edge in zip(self.latent, self.block, strict=True)):
            raise ValueError(
                f"a block of {self.block} does not fit in a latent of {self.latent} (T, H, W): "
                "choose a smaller policy.block or a larger video"
            )

    @property
    def shape(self) -> Shape3:
        """Tokens along (T, H, W)."""
        t, h, w = (size // edge for size, edge in zip(self.latent, self.patch, strict=True))
        return t, h, w

    @property
    def count(self) -> int:
        """N, the number of tokens."""
        return math.prod(self.shape)

    @property
    def blocks(self) -> Shape3:
        """Blocks along (T, H, W), those cut off by the border included."""
        return block_counts(self.latent, self.block)


def block_counts(latent: Shape3, block: Shape3) -> Shape3:
    """Blocks along (T, H, W) that cover a latent; the last ones may be cut off."""
    t, h, w = (math.ceil(size / edge) for size, edge in zip(latent, block, strict=True))
    return t, h, w


def every_block(counts: Shape3) -> Iterator[Shape3]:
    """The indices of all blocks, the last axis fastest."""
    nt, nh, nw = (range(n) for n in counts)
    return itertools.product(nt, nh, nw)


def block_slices(latent: Shape3, block: Shape3, index: Shape3) -> tuple[slice, slice, slice]:
    """The latent positions of one block, cut off at the border."""
    t, h, w = (slice(i * e, min((i + 1) * e, s)) for i, e, s in zip(index, block, latent, strict=True))
    return t, h, w


def expand_blocks(values: Tensor, latent: Shape3, block: Shape3) -> Tensor:
    """Give every latent position the value of its block: [nt, nh, nw] -> [T, H, W]."""
    for axis, (size, edge) in enumerate(zip(latent, block, strict=True)):
        index = torch.arange(size, device=values.device) // edge
        values = values.index_select(axis, index)
    return values


def token_values(values: Tensor, patch: Shape3) -> Tensor:
    """The values of every token, in natural order: [C, T, H, W] -> [N, positions of a patch, C]."""
    c, t, h, w = values.shape
    pt, ph, pw = patch
    boxes = values.reshape(c, t // pt, pt, h // ph, ph, w // pw, pw)
    return boxes.permute(1, 3, 5, 2, 4, 6, 0).reshape(-1, pt * ph * pw, c)
