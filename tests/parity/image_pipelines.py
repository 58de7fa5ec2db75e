"""Small Flux.1 and Stable Diffusion 3 pipelines of diffusers' own classes, with random weights."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from tests.conftest import WAN_TINY

TEXT_TOKENS = 16


def _vae(shift: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.4,
        shift_factor=shift,
    )


def _clip(kind: Any, width: int) -> Any:
    return kind(
        CLIPTextConfig(
            hidden_size=width,
            intermediate_size=16,
            num_attention_heads=2,
            num_hidden_layers=2,
            projection_dim=width,
            vocab_size=2048,
        )
    )


def _t5() -> T5EncoderModel:
    return T5EncoderModel(T5Config(d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=2048))


def _tokenizer(limit: int) -> PreTrainedTokenizerFast:
    """wan-tiny's words, padded to `limit`."""
    return PreTrainedTokenizerFast.from_pretrained(WAN_TINY / "tokenizer", model_max_length=limit)


def flux_pipeline(*, guidance_embeds: bool = True, dynamic: bool = True) -> FluxPipeline:
    """Two double and two single blocks of 6 heads."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=6,
        joint_attention_dim=24,
        pooled_projection_dim=12,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(2, 2, 4),
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=dynamic, shift=3.0),
        vae=_vae(0.1),
        text_encoder=_clip(CLIPTextModel, 12),
        tokenizer=_tokenizer(77),
        text_encoder_2=_t5(),
        tokenizer_2=_tokenizer(TEXT_TOKENS),
        transformer=transformer,
    )


def sd3_pipeline(*, qk_norm: str | None = "rms_norm", dual: tuple[int, ...] = ()) -> StableDiffusion3Pipeline:
    """Three joint blocks of 6 heads; the last one's text is not read. Those in `dual` have a second
    attention, as the first ones of SD3.5 medium."""
    torch.manual_seed(1)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=6,
        joint_attention_dim=24,
        caption_projection_dim=48,
        pooled_projection_dim=20,
        pos_embed_max_size=24,
        qk_norm=qk_norm,
        dual_attention_layers=dual,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(0.1),
        text_encoder=_clip(CLIPTextModelWithProjection, 8),
        tokenizer=_tokenizer(77),
        text_encoder_2=_clip(CLIPTextModelWithProjection, 12),
        tokenizer_2=_tokenizer(77),
        text_encoder_3=_t5(),
        tokenizer_3=_tokenizer(TEXT_TOKENS),
    )


def saved(pipeline: Any, folder: Path) -> Any:
    """The pipeline written to a folder and read again: T5's tied weights are tied only then."""
    pipeline.save_pretrained(folder)
    again = type(pipeline).from_pretrained(folder)
    for parameter in again.transformer.parameters():  # out of the mapped file, where weights are not aligned
        parameter.data = parameter.data.clone()
    again.set_progress_bar_config(disable=True)
    return again
