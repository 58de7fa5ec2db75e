"""Sizes of Latte pipelines."""

from dataclasses import dataclass
from typing import Any, ClassVar

from jano_dist.errors import UserError
from jano_dist.geometry.base import Geometry, Shape3
from jano_dist.geometry.configs import Configs, check_sizes

# What diffusers' LatteTransformer3DModel and AutoencoderKL take where a config file does not say.
TRANSFORMER: dict[str, Any] = {
    "num_attention_heads": 16, "attention_head_dim": 88, "num_layers": 1, "video_length": 16,
    "activation_fn": "geglu",
}  # fmt: skip
VAE: dict[str, Any] = {"block_out_channels": (64,)}

TEXT_TOKENS = 120  # fixed in diffusers' LattePipeline


@dataclass(frozen=True)
class LatteGeometry(Geometry):
    """Layers in turn: a spatial one, in which the tokens of a frame attend to each other and to the text,
    and a temporal one, in which those of a place do.

    Nothing of the text is kept from step to step, and every frame projects it anew.

    Attributes:
        frames: of every video; the table of temporal positions has so many.
        ffn_inputs: matrices in front of the FFN's middle: 2 where it is gated.
    """

    regions: ClassVar[bool] = False

    frames: int = 16
    ffn_inputs: int = 1

    def latent_shape(self, frames: int, height: int, width: int) -> Shape3:
        if frames != self.frames:
            raise UserError(
                f"this model makes videos of {self.frames} frames, not {frames}: use --frames {self.frames}"
            )
        return super().latent_shape(frames, height, width)

    def text_tokens(self, max_sequence_length: int) -> int:
        return TEXT_TOKENS

    def forward_flops(
        self,
        rows: int,
        tokens: int,
        text_tokens: int,
        *,
        kv_rows: int | None = None,
        text_rows: int | None = None,
    ) -> int:
        d, pairs, text = self.width, self.layers // 2, self.frames * text_tokens
        ffn = 2 * (self.ffn_inputs + 1) * tokens * d * self.ffn_dim
        spatial = 2 * d * d * (6 * tokens + 2 * text) + ffn  # q, k, v, o; then q, o and the text's k, v
        temporal = 2 * d * d * 4 * tokens + ffn
        attention = self.attention_flops(tokens, tokens, text_tokens)
        return pairs * (spatial + temporal) + attention + self._outer_flops(tokens, text_tokens)

    def attention_flops(
        self, rows: int, tokens: int, text_tokens: int, *, text_rows: int | None = None
    ) -> int:
        places = tokens // self.frames
        return self.layers // 2 * 4 * rows * self.width * (places + self.frames + text_tokens)

    def _outer_flops(self, tokens: int, text_tokens: int) -> int:
        """Outside of the blocks. The predicted variance is computed, too, and not used."""
        d, positions = self.width, self.patch_positions
        embed = 2 * tokens * d * self.channels * positions
        time = 2 * (self.time_dim * d + d * d + 6 * d * d)
        text = 2 * text_tokens * (self.text_dim * d + d * d)
        return embed + time + text + 2 * tokens * d * 2 * self.row_width

    def text_flops(self, text_tokens: int) -> int:
        return 0


def latte_geometry(configs: Configs) -> Geometry:
    """From the config files of a Latte pipeline, with every default filled in.

    Raises:
        ValueError: a size that is none.
    """
    transformer, vae = {**TRANSFORMER, **configs["transformer"]}, {**VAE, **configs["vae"]}
    stride, edge = 2 ** (len(vae["block_out_channels"]) - 1), transformer["patch_size"]
    width = transformer["num_attention_heads"] * transformer["attention_head_dim"]
    return check_sizes(
        LatteGeometry(
            channels=transformer["in_channels"],
            out_channels=transformer["in_channels"],
            vae_stride=(1, stride, stride),
            patch=(1, edge, edge),
            layers=2 * transformer["num_layers"],
            heads=transformer["num_attention_heads"],
            head_dim=transformer["attention_head_dim"],
            ffn_dim=4 * width,  # of diffusers' FeedForward
            text_dim=transformer["caption_channels"],
            time_dim=256,  # of diffusers' AdaLayerNormSingle
            frames=transformer["video_length"],
            ffn_inputs=2 if transformer["activation_fn"].startswith(("geglu", "swiglu")) else 1,
        )
    )
