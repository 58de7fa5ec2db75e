"""Sizes of models whose text tokens are part of the sequence: Flux.1, Stable Diffusion 3 and 3.5."""

from dataclasses import dataclass
from typing import Any

from jano_dist.geometry.base import Geometry, Shape3
from jano_dist.geometry.configs import Configs, check_sizes

# What diffusers' classes take where a config file does not say.
FLUX: dict[str, Any] = {
    "in_channels": 64, "out_channels": None, "num_layers": 19, "num_single_layers": 38,
    "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096,
    "pooled_projection_dim": 768, "guidance_embeds": False,
}  # fmt: skip
SD3: dict[str, Any] = {
    "in_channels": 16, "out_channels": 16, "patch_size": 2, "num_layers": 18, "attention_head_dim": 64,
    "num_attention_heads": 18, "joint_attention_dim": 4096, "pooled_projection_dim": 2048,
    "dual_attention_layers": (),
}  # fmt: skip
VAE: dict[str, Any] = {"block_out_channels": (64,)}
_CLIP_TOKENS = 77  # that SD3 puts before those of T5
_TIME_DIM = 256  # of the sinusoidal embedding, fixed in diffusers


@dataclass(frozen=True)
class JointGeometry(Geometry):
    """Every layer computes video (or image) and text rows alike, in weights of their own or in common.

    Attributes:
        pooled_dim: of the pooled text embedding.
        double: layers in which text has weights of its own; all in SD3.
    """

    pooled_dim: int = 0
    double: int = 0

    def forward_flops(
        self,
        rows: int,
        tokens: int,
        text_tokens: int,
        *,
        kv_rows: int | None = None,
        text_rows: int | None = None,
    ) -> int:
        d, text = self.width, text_tokens if text_rows is None else text_rows
        with_kv = rows if kv_rows is None else kv_rows
        per_row = 4 * d * d + 4 * d * self.ffn_dim  # q, output and FFN
        products = self.layers * ((rows + text) * per_row + (with_kv + text) * 4 * d * d)
        products += self.second_layers * (rows + with_kv) * 4 * d * d
        attention = self.attention_flops(rows, tokens, text_tokens, text_rows=text_rows)
        return products + attention + self._outer_flops(rows, tokens, text_tokens) - self._idle_flops(text)

    def attention_flops(
        self, rows: int, tokens: int, text_tokens: int, *, text_rows: int | None = None
    ) -> int:
        text = text_tokens if text_rows is None else text_rows
        both = self.layers * (rows + text) * (tokens + text_tokens) + self.second_layers * rows * tokens
        return 4 * self.width * both

    def text_flops(self, text_tokens: int) -> int:
        """Nothing of the text is constant over the steps."""
        return 0

    def _outer_flops(self, rows: int, tokens: int, text_tokens: int) -> int:
        """Outside of the rows' way through the layers; the embeddings are never cut."""
        d, inside = self.width, self.channels * self.patch_positions
        embed = 2 * d * (tokens * inside + text_tokens * self.text_dim)
        times = 2 if self.guidance == "embedded" else 1
        vectors = 2 * d * (times * (_TIME_DIM + d) + self.pooled_dim + d)
        modulation = 2 * d * d * self._modulations()
        return embed + vectors + modulation + 2 * rows * d * self.row_width

    def _modulations(self) -> int:
        """Vectors of hidden size that the timestep is projected to: 6 per stream of a layer with two, 3 in a
        layer with one, 2 at the end."""
        return 12 * self.double + 3 * (self.layers - self.double) + 2

    def _idle_flops(self, text_rows: int) -> int:
        """What the last layer leaves out where nobody reads its text: see `StableDiffusion3Geometry`."""
        return 0


@dataclass(frozen=True)
class StableDiffusion3Geometry(JointGeometry):
    """The last layer's text has queries, keys and values, but no output: 2 modulations, no FFN. A second
    attention has 3 modulations of its own."""

    def text_tokens(self, max_sequence_length: int) -> int:
        return _CLIP_TOKENS + max_sequence_length

    def _modulations(self) -> int:
        return super()._modulations() - 4 + 3 * self.second_layers

    def _idle_flops(self, text_rows: int) -> int:
        return text_rows * (2 * self.width**2 + 4 * self.width * self.ffn_dim)


def flux_geometry(configs: Configs) -> Geometry:
    """From the config files of a Flux.1 pipeline, with every default filled in.

    A token is 2x2 positions of the latent, which diffusers packs into channels before the transformer.
    """
    transformer = {**FLUX, **configs["transformer"]}
    channels = transformer["in_channels"] // 4
    geometry = JointGeometry(
        channels=channels,
        out_channels=channels,
        vae_stride=_stride(configs),
        patch=(1, 2, 2),
        layers=transformer["num_layers"] + transformer["num_single_layers"],
        **_sizes(transformer),
        guidance="embedded" if transformer["guidance_embeds"] else "none",
        double=transformer["num_layers"],
    )
    return check_sizes(geometry)


def sd3_geometry(configs: Configs) -> Geometry:
    """From the config files of a Stable Diffusion 3 pipeline, with every default filled in."""
    transformer = {**SD3, **configs["transformer"]}
    edge = transformer["patch_size"]
    geometry = StableDiffusion3Geometry(
        channels=transformer["in_channels"],
        out_channels=transformer["out_channels"] or transformer["in_channels"],
        vae_stride=_stride(configs),
        patch=(1, edge, edge),
        layers=transformer["num_layers"],
        **_sizes(transformer),
        double=transformer["num_layers"],
        second_layers=len(set(transformer["dual_attention_layers"]) & set(range(transformer["num_layers"]))),
    )
    return check_sizes(geometry)


def _sizes(transformer: dict[str, Any]) -> dict[str, Any]:
    """What both have in common."""
    width = transformer["num_attention_heads"] * transformer["attention_head_dim"]
    return {
        "heads": transformer["num_attention_heads"],
        "head_dim": transformer["attention_head_dim"],
        "ffn_dim": 4 * width,
        "text_dim": transformer["joint_attention_dim"],
        "time_dim": _TIME_DIM,
        "pooled_dim": transformer["pooled_projection_dim"],
        "joint": True,
        "images": True,
    }


def _stride(configs: Configs) -> Shape3:
    vae = {**VAE, **configs["vae"]}
    edge = 2 ** (len(vae["block_out_channels"]) - 1)
    return 1, edge, edge
