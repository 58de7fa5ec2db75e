"""Sizes of a model, from its config files alone. No torch at import: a wrong size is refused at once."""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jano_dist.errors import UserError

Shape3 = tuple[int, int, int]

_ASSETS = Path(__file__).parent / "assets"

# The config files of models on the hub, as far as they differ from their classes' defaults: a plan for a
# cluster is made on a machine that has neither the files nor a network.
KNOWN: dict[str, dict[str, Any]] = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": {"num_layers": 30, "num_attention_heads": 12, "ffn_dim": 8960},
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": {"num_layers": 40, "num_attention_heads": 40, "ffn_dim": 13824},
}

# What diffusers' WanTransformer3DModel and AutoencoderKLWan take where a config file does not say.
_TRANSFORMER: dict[str, Any] = {
    "in_channels": 16, "out_channels": 16, "patch_size": (1, 2, 2), "num_layers": 40,
    "num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824, "text_dim": 4096, "freq_dim": 256,
}  # fmt: skip
_VAE: dict[str, Any] = {"scale_factor_temporal": 4, "scale_factor_spatial": 8}


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

    def forward_flops(self, rows: int, tokens: int, text_tokens: int, *, kv_rows: int | None = None) -> int:
        """Matrix-product FLOPs (2 per multiply-add) of one forward of one branch.

        `rows` tokens are computed and attend to `tokens`; keys and values are made of `kv_rows` (None: of
        those that are computed); the text K/V are there already. Counted from the layer sizes;
        `tests/parity/test_flops.py` checks it against torch's own counter.
        """
        d, f = self.width, self.ffn_dim
        with_kv = rows if kv_rows is None else kv_rows
        projections = 2 * d * d * (4 * rows + 2 * with_kv)  # q, o of self- and cross-attention; k, v
        ffn = 4 * rows * d * f
        attention = self.attention_flops(rows, tokens, text_tokens)
        return self.layers * (projections + ffn) + attention + self._outer_flops(rows, tokens)

    def attention_flops(self, rows: int, tokens: int, text_tokens: int) -> int:
        """Of `forward_flops`, what attention kernels do: scores and weighted sums, of tokens and of text."""
        return self.layers * 4 * rows * self.width * (tokens + text_tokens)

    def reused_flops(self, blocks: Mapping[str, int], tokens: int, text_tokens: int) -> int:
        """FLOPs of one forward of one branch, of all tokens, through a cache inside the blocks.

        `blocks` are the rows computed over all layers, by part, as a step's record has them.
        """
        d = self.width
        row = {
            "attn1": 8 * d * d + 4 * d * tokens,
            "attn2": 4 * d * d + 4 * d * text_tokens,
            "ffn": 4 * d * self.ffn_dim,
            "scores": 2 * d * text_tokens,
        }
        return sum(row[part] * rows for part, rows in blocks.items()) + self._outer_flops(tokens, tokens)

    def _outer_flops(self, rows: int, tokens: int) -> int:
        """Outside of the blocks."""
        d = self.width
        embed = 2 * tokens * d * self.channels * math.prod(self.patch)  # the patch embedding is never cut
        time = 2 * (self.time_dim * d + d * d + 6 * d * d)
        return embed + time + 2 * rows * d * self.row_width

    def text_flops(self, text_tokens: int) -> int:
        """FLOPs of one branch's text projections and cross-attention K/V, done once per generation."""
        d = self.width
        return 2 * text_tokens * (self.text_dim * d + d * d + self.layers * 2 * d * d)


def wan_geometry(transformer: Any, vae: Any) -> Geometry:
    """From the config files of a Wan pipeline's transformer and VAE, with every default filled in.

    Raises:
        ValueError: a size that is none.
    """
    geometry = Geometry(
        channels=transformer["in_channels"],
        out_channels=transformer["out_channels"],
        vae_stride=(vae["scale_factor_temporal"], vae["scale_factor_spatial"], vae["scale_factor_spatial"]),
        patch=tuple(transformer["patch_size"]),
        layers=transformer["num_layers"],
        heads=transformer["num_attention_heads"],
        head_dim=transformer["attention_head_dim"],
        ffn_dim=transformer["ffn_dim"],
        text_dim=transformer["text_dim"],
        time_dim=transformer["freq_dim"],
    )
    for name, size in vars(geometry).items():
        if not all(type(edge) is int and edge > 0 for edge in (size if isinstance(size, tuple) else (size,))):
            raise ValueError(f"its config.json gives {size!r} for {name}")
    return geometry


def quick_geometry(name: str) -> Geometry | None:
    """The geometry of a model that is on this machine or well known; None where it takes more to say.

    Raises:
        UserError: neither a folder nor a hub name.
    """
    source = find_model(name)
    if name in KNOWN and not Path(source).is_dir():
        return wan_geometry(_TRANSFORMER | KNOWN[name], _VAE)
    try:
        texts = [
            Path(source, part, "config.json").read_text(encoding="utf-8") for part in ("transformer", "vae")
        ]
        transformer, vae = map(json.loads, texts)
        return wan_geometry(_TRANSFORMER | transformer, _VAE | vae)
    except (OSError, ValueError, TypeError):  # what is wrong with a model is said by whoever loads it
        return None


def find_model(name: str) -> str:
    """Where a model is read from: a folder on this machine, or the hub name as it is.

    Raises:
        UserError: neither a folder nor a hub name.
    """
    if not name:
        raise UserError(
            "the model has no name: give wan-tiny, an existing folder, or a hub name like org/name"
        )
    if name in {folder.name for folder in _ASSETS.iterdir() if folder.is_dir()}:
        return str(_ASSETS / name)
    if os.path.isdir(name) or re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return name
    raise UserError(
        f"there is no model folder {name!r}: give wan-tiny, an existing folder, or a hub name like org/name"
    )
