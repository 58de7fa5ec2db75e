"""A small Latte pipeline of random weights, made of diffusers' own classes, as a folder."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, LattePipeline, LatteTransformer3DModel
from transformers import T5Config, T5EncoderModel, T5Tokenizer

FRAMES = 4
_LETTERS = [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz0123456789.,-"]
_PIECES = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *_LETTERS, ("▁ball", -1.0)]


def transformer(**changes: Any) -> LatteTransformer3DModel:
    """Like that of Latte-1, with two pairs of layers; its weights are far from those of a first step."""
    sizes = {
        "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 8,
        "num_layers": 2, "cross_attention_dim": 24, "attention_bias": True, "sample_size": 16,
        "patch_size": 2, "activation_fn": "gelu-approximate", "num_embeds_ada_norm": 1000,
        "norm_type": "ada_norm_single", "norm_elementwise_affine": False, "norm_eps": 1e-6,
        "caption_channels": 16, "video_length": FRAMES,
    }  # fmt: skip
    return LatteTransformer3DModel(**{**sizes, **changes})


def save_latte(folder: Path, *, beta_end: float = 0.002) -> Path:
    """Write the pipeline into a folder, and return it.

    Its noise table ends early by default: a model that knows nothing leaves the noise where it is, and the
    scheduler divides it by alpha, which Latte-1's table (`beta_end` .02) lets fall to .006.
    """
    torch.manual_seed(0)
    text = T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    made = transformer()
    for parameter in made.parameters():  # so that text, time and place all matter
        parameter.data += 0.1 * torch.randn_like(parameter)
    LattePipeline(
        tokenizer=T5Tokenizer(vocab=_PIECES, extra_ids=0),
        text_encoder=T5EncoderModel(text),
        vae=vae,
        transformer=made,
        scheduler=DDIMScheduler(beta_start=1e-4, beta_end=beta_end, clip_sample=False),
    ).save_pretrained(folder)
    return folder


def latte_pipeline(folder: Path) -> LattePipeline:
    """diffusers' own, with its transformer's weights out of the mapped file (see `wan_tiny_pipeline`)."""
    pipeline: Any = LattePipeline.from_pretrained(folder)
    for parameter in pipeline.transformer.parameters():
        parameter.data = parameter.data.clone()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
