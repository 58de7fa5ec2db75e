"""How large a model's parts are, from its config files alone: no weight is read, no memory taken."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from jano_dist.errors import UserError
from jano_dist.geometry import KNOWN, Geometry, find_model, wan_geometry
from jano_dist.models.wan_pipeline import _sentence
from jano_dist.models.weights import stored_dtype


@dataclass(frozen=True)
class Parameters:
    """Parameters of a module: those in the model's dtype, and those that diffusers keeps in float32."""

    plain: int
    float32: int

    def nbytes(self, element: int) -> int:
        """Bytes, with `element` bytes per plain parameter."""
        return self.plain * element + self.float32 * 4


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a model's parts.

    Attributes:
        geometry: see `Geometry`.
        transformer: all of it. layer: its largest layer.
        text_encoder: number of parameters. vae: the same.
        vae_channels: of the decoder at full resolution (at lower ones it has more).
        stored_elements: bytes per parameter in the files of transformer and text encoder.
        from_table: whether the sizes are not the model's own files', but known by its name.
    """

    geometry: Geometry
    transformer: Parameters
    layer: Parameters
    text_encoder: int
    vae: int
    vae_channels: int
    stored_elements: tuple[int, int]
    from_table: bool


_UMT5_XXL = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}


def read_sizes(name: str, *, local: bool = False) -> ModelSizes:
    """Sizes of a model by name or folder.

    Args:
        local: look at files of this machine only; without them take what is known of the name.

    Raises:
        UserError: unknown model.
    """
    source = find_model(name)
    try:
        with _sentence(source):
            configs = _configs(source, local=local)
        from_table = False
    except UserError as error:
        if Path(source).is_dir() or not local:
            raise
        if name not in KNOWN:
            raise UserError(
                f"model {name!r} is not on this machine: fetch it, or name one of {', '.join(KNOWN)}"
            ) from error
        configs, from_table = (KNOWN[name], {}, _UMT5_XXL), True
    with _sentence(source), torch.device("meta"):
        transformer = WanTransformer3DModel.from_config(configs[0])
        vae = AutoencoderKLWan.from_config(configs[1])
        text = UMT5EncoderModel(UMT5Config.from_dict(configs[2]))
    return ModelSizes(
        geometry=wan_geometry(transformer.config, vae.config),
        transformer=_count(transformer, transformer),
        layer=max((_count(block, transformer) for block in transformer.blocks), key=lambda own: own.plain),
        text_encoder=_count(text).plain,
        vae=_count(vae).plain,
        vae_channels=(vae.config.decoder_base_dim or vae.config.base_dim) * vae.config.dim_mult[0],
        stored_elements=_stored_elements(source),
        from_table=from_table,
    )


def _configs(source: str, *, local: bool) -> tuple[Any, Any, Any]:
    """Configs of transformer, VAE and text encoder."""
    return (
        WanTransformer3DModel.load_config(source, subfolder="transformer", local_files_only=local),
        AutoencoderKLWan.load_config(source, subfolder="vae", local_files_only=local),
        UMT5Config.get_config_dict(source, subfolder="text_encoder", local_files_only=local)[0],
    )


def _count(module: nn.Module, owner: Any = None) -> Parameters:
    """Parameters of a module; `owner` is the model whose class says what stays in float32."""
    kept = set(getattr(owner, "_keep_in_fp32_modules", None) or ())
    counts = [0, 0]
    for name, parameter in module.named_parameters():
        counts[bool(kept.intersection(name.split(".")))] += parameter.numel()
    return Parameters(*counts)


def _stored_elements(source: str) -> tuple[int, int]:
    """Bytes per parameter in the files; 4, the most, where there are no files to ask."""
    parts = [Path(source, part) for part in ("transformer", "text_encoder")]
    sizes = [stored_dtype(part).itemsize if part.is_dir() else 4 for part in parts]
    return sizes[0], sizes[1]
