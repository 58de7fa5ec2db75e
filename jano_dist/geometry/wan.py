"""Sizes of Wan pipelines."""

from collections.abc import Mapping
from typing import Any

from jano_dist.geometry.base import Geometry
from jano_dist.geometry.configs import Configs, check_sizes

# What diffusers' WanTransformer3DModel and AutoencoderKLWan take where a config file does not say.
TRANSFORMER: dict[str, Any] = {
    "in_channels": 16, "out_channels": 16, "patch_size": (1, 2, 2), "num_layers": 40,
    "num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824, "text_dim": 4096, "freq_dim": 256,
}  # fmt: skip
VAE: dict[str, Any] = {"scale_factor_temporal": 4, "scale_factor_spatial": 8}
CLIP: dict[str, Any] = {"image_size": 224, "patch_size": 32}  # transformers' CLIPVisionConfig


class WanGeometry(Geometry):
    """Self-attention, then cross-attention to the text, whose keys and values are made once.

    Counted from the layer sizes; `tests/parity/test_flops.py` checks it against torch's own counter.
    """

    block_caches = True

    def forward_flops(
        self,
        rows: int,
        tokens: int,
        text_tokens: int,
        *,
        kv_rows: int | None = None,
        text_rows: int | None = None,
    ) -> int:
        d, f = self.width, self.ffn_dim
        with_kv = rows if kv_rows is None else kv_rows
        projections = 2 * d * d * (4 * rows + 2 * with_kv)  # q, o of self- and cross-attention; k, v
        ffn = 4 * rows * d * f
        attention = self.attention_flops(rows, tokens, text_tokens)
        return self.layers * (projections + ffn) + attention + self._outer_flops(rows, tokens)

    def attention_flops(
        self, rows: int, tokens: int, text_tokens: int, *, text_rows: int | None = None
    ) -> int:
        return self.layers * 4 * rows * self.width * (tokens + text_tokens + self.image_tokens)

    def reused_flops(self, blocks: Mapping[str, int], tokens: int, text_tokens: int) -> int:
        d = self.width
        row = {
            "attn1": 8 * d * d + 4 * d * tokens,
            "attn2": 4 * d * d + 4 * d * (text_tokens + self.image_tokens),
            "ffn": 4 * d * self.ffn_dim,
            "scores": 2 * d * text_tokens,
        }
        return sum(row[part] * rows for part, rows in blocks.items()) + self._outer_flops(tokens, tokens)

    def _outer_flops(self, rows: int, tokens: int) -> int:
        """Outside of the blocks."""
        d = self.width
        inside = (self.channels + self.condition_channels) * self.patch_positions
        embed = 2 * tokens * d * inside  # the patch embedding is never cut
        time = 2 * (self.time_dim * d + d * d + 6 * d * d)
        return embed + time + 2 * rows * d * self.row_width

    def text_flops(self, text_tokens: int) -> int:
        """Text and image projections and cross-attention K/V."""
        d, kept = self.width, self.layers * 2 * self.width**2
        text = text_tokens * (self.text_dim * d + d * d + kept)
        return 2 * (text + self.image_tokens * (self.image_dim**2 + self.image_dim * d + kept))


def wan_geometry(configs: Configs) -> Geometry:
    """From the config files of a Wan pipeline, with every default filled in.

    Raises:
        ValueError: a size that is none.
    """
    transformer, vae = {**TRANSFORMER, **configs["transformer"]}, {**VAE, **configs["vae"]}
    given, made = transformer["in_channels"], transformer["out_channels"] or transformer["in_channels"]
    of_image = _of_image(configs, given - made)
    return check_sizes(
        WanGeometry(
            channels=made if of_image else given,
            out_channels=made,
            vae_stride=(
                vae["scale_factor_temporal"],
                vae["scale_factor_spatial"],
                vae["scale_factor_spatial"],
            ),
            patch=tuple(transformer["patch_size"]),
            layers=transformer["num_layers"],
            heads=transformer["num_attention_heads"],
            head_dim=transformer["attention_head_dim"],
            ffn_dim=transformer["ffn_dim"],
            text_dim=transformer["text_dim"],
            time_dim=transformer["freq_dim"],
            **of_image,
            first_frame=bool(configs[""].get("expand_timesteps")),
            experts=2 if any(configs[""].get("transformer_2") or ()) else 1,
            boundary=configs[""].get("boundary_ratio") or 0.0,
        )
    )


def _of_image(configs: Configs, condition_channels: int) -> dict[str, Any]:
    """What an image-to-video model takes of the picture; the image encoder is CLIP where there is one."""
    if configs[""].get("_class_name") != "WanImageToVideoPipeline":
        return {}
    found: dict[str, Any] = {"needs_image": True, "condition_channels": condition_channels}
    width = configs["transformer"].get("image_dim")
    if width:
        clip = {**CLIP, **configs.get("image_encoder", {})}
        found |= {"image_dim": width, "image_tokens": (clip["image_size"] // clip["patch_size"]) ** 2 + 1}
    return found
