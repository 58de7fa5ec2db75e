"""Small Wan pipelines of other kinds than wan-tiny, of diffusers' own classes, with random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.conftest import WAN_TINY

TEXT_TOKENS = 512  # the only number that diffusers' image-to-video transformer takes


def _vae(latent: int, **more: Any) -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=8,
        z_dim=latent,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1 * i for i in range(latent)],
        latents_std=[1.0 + 0.1 * i for i in range(latent)],
        **more,
    )


def transformer(latent: int, **more: Any) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        num_attention_heads=more.pop("heads", 6),
        attention_head_dim=12,
        in_channels=more.pop("in_channels", latent),
        out_channels=latent,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
        **more,
    )


def _texts() -> dict[str, Any]:
    config = UMT5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=2048)
    return {
        "text_encoder": UMT5EncoderModel(config),
        "tokenizer": AutoTokenizer.from_pretrained(WAN_TINY / "tokenizer"),
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    }


def i2v_pipeline(*, clip: bool = True, boundary: float | None = None) -> WanImageToVideoPipeline:
    """Image-to-video: CLIP's states as extra keys (Wan2.1), or none and two experts (Wan2.2)."""
    torch.manual_seed(3)
    extra = {"image_dim": 20, "added_kv_proj_dim": 72} if clip else {}
    vision = CLIPVisionConfig(
        hidden_size=20, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=28,
        patch_size=14,
    )  # fmt: skip
    size = {"height": 28, "width": 28}
    return WanImageToVideoPipeline(
        transformer=transformer(4, in_channels=12, **extra),
        vae=_vae(4),
        image_encoder=CLIPVisionModel(vision) if clip else None,
        image_processor=CLIPImageProcessor(crop_size=size, size=size) if clip else None,
        transformer_2=transformer(4, in_channels=12, **extra) if boundary else None,
        boundary_ratio=boundary,
        **_texts(),
    )


def ti2v_pipeline() -> WanPipeline:
    """Wan2.2's 5B kind: a timestep per token, a VAE of stride (4, 16, 16)."""
    torch.manual_seed(4)
    vae = _vae(6, in_channels=12, out_channels=12, patch_size=2, is_residual=True, scale_factor_spatial=16)
    return WanPipeline(transformer=transformer(6), vae=vae, expand_timesteps=True, **_texts())


def experts_pipeline(*, boundary: float = 0.8) -> WanPipeline:
    """Wan2.2's 14B kind: another transformer below the boundary."""
    torch.manual_seed(5)
    second = transformer(4)
    return WanPipeline(
        transformer=transformer(4), transformer_2=second, boundary_ratio=boundary, vae=_vae(4), **_texts()
    )


def read_back(pipeline: Any, folder: Path) -> Any:
    """The pipeline written to a folder and read again, weights out of the mapped file."""
    pipeline.save_pretrained(folder)
    again = type(pipeline).from_pretrained(folder)
    for part in filter(None, (again.transformer, again.transformer_2)):
        for parameter in part.parameters():
            parameter.data = parameter.data.clone()
    again.set_progress_bar_config(disable=True)
    return again


def picture(path: Path, seed: int, width: int = 40, height: int = 30) -> Path:
    """A picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path
