"""The config files of models on the hub, as far as they differ from their classes' defaults.

A plan for a cluster is made on a machine that has neither the files nor a network.
"""

from typing import Any

_UMT5_XXL: dict[str, Any] = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}


def _wan(**transformer: Any) -> dict[str, dict[str, Any]]:
    index = {
        "_class_name": "WanPipeline",
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
    }
    return {"": index, "transformer": transformer, "vae": {}, "text_encoder": _UMT5_XXL}


_T5_XXL: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
_CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
}
_CLIP_G: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
}
_IMAGE_VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def _flux(**transformer: Any) -> dict[str, dict[str, Any]]:
    index = {
        "_class_name": "FluxPipeline",
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
    }
    encoders = {"text_encoder": {**_CLIP_L, "projection_dim": 768}, "text_encoder_2": _T5_XXL}
    return {"": index, "transformer": transformer, "vae": _IMAGE_VAE, **encoders}


def _sd3(**transformer: Any) -> dict[str, dict[str, Any]]:
    index = {
        "_class_name": "StableDiffusion3Pipeline",
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_3": ["transformers", "T5EncoderModel"],
    }
    encoders = {
        "text_encoder": {**_CLIP_L, "projection_dim": 768},
        "text_encoder_2": {**_CLIP_G, "projection_dim": 1280},
        "text_encoder_3": _T5_XXL,
    }
    return {"": index, "transformer": transformer, "vae": _IMAGE_VAE, **encoders}


_LATTE: dict[str, dict[str, Any]] = {
    "": {
        "_class_name": "LattePipeline",
        "transformer": ["diffusers", "LatteTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "T5EncoderModel"],
    },
    "transformer": {
        "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8,
        "num_layers": 28, "cross_attention_dim": 1152, "attention_bias": True, "sample_size": 64,
        "patch_size": 2, "activation_fn": "gelu-approximate", "num_embeds_ada_norm": 1000,
        "norm_type": "ada_norm_single", "norm_elementwise_affine": False, "norm_eps": 1e-6,
        "caption_channels": 4096, "video_length": 16,
    },
    "vae": {
        "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
        "sample_size": 512,
    },
    "text_encoder": _T5_XXL,
}  # fmt: skip


def _wan22(transformer: dict[str, Any], vae: dict[str, Any], **index: Any) -> dict[str, dict[str, Any]]:
    found = _wan(**transformer)
    found[""] |= index
    if "boundary_ratio" in index:
        found[""]["transformer_2"] = found[""]["transformer"]
        found["transformer_2"] = transformer
    return {**found, "vae": vae}


_WAN22_VAE: dict[str, Any] = {
    "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "in_channels": 12, "out_channels": 12,
    "patch_size": 2, "is_residual": True, "scale_factor_spatial": 16,
}  # fmt: skip

_WAN_I2V: dict[str, dict[str, Any]] = {
    "": {
        "_class_name": "WanImageToVideoPipeline",
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "image_encoder": ["transformers", "CLIPVisionModel"],
    },
    "transformer": {
        "num_layers": 40, "num_attention_heads": 40, "ffn_dim": 13824, "in_channels": 36, "image_dim": 1280,
        "added_kv_proj_dim": 5120,
    },
    "vae": {},
    "text_encoder": _UMT5_XXL,
    "image_encoder": {
        "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 16, "num_hidden_layers": 32,
        "image_size": 224, "patch_size": 14, "projection_dim": 1024,
    },
}  # fmt: skip

# Name -> part -> config; "" is model_index.json.
KNOWN: dict[str, dict[str, dict[str, Any]]] = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": _wan(num_layers=30, num_attention_heads=12, ffn_dim=8960),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": _wan(num_layers=40, num_attention_heads=40, ffn_dim=13824),
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": _WAN_I2V,
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": _wan22(
        {"num_layers": 40, "num_attention_heads": 40, "ffn_dim": 13824}, {}, boundary_ratio=0.875
    ),
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": _wan22(
        {"num_layers": 40, "num_attention_heads": 40, "ffn_dim": 13824, "in_channels": 36},
        {},
        _class_name="WanImageToVideoPipeline",
        boundary_ratio=0.9,
    ),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": _wan22(
        {
            "num_layers": 30,
            "num_attention_heads": 24,
            "ffn_dim": 14336,
            "in_channels": 48,
            "out_channels": 48,
        },
        _WAN22_VAE,
        expand_timesteps=True,
    ),
    "black-forest-labs/FLUX.1-dev": _flux(guidance_embeds=True),
    "black-forest-labs/FLUX.1-schnell": _flux(guidance_embeds=False),
    "stabilityai/stable-diffusion-3-medium-diffusers": _sd3(
        num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=192
    ),
    "stabilityai/stable-diffusion-3.5-large": _sd3(
        num_layers=38,
        num_attention_heads=38,
        caption_projection_dim=2432,
        pos_embed_max_size=192,
        qk_norm="rms_norm",
    ),
    "stabilityai/stable-diffusion-3.5-medium": _sd3(
        num_layers=24,
        num_attention_heads=24,
        caption_projection_dim=1536,
        pos_embed_max_size=384,
        qk_norm="rms_norm",
        dual_attention_layers=tuple(range(13)),
    ),
    "maxin-cn/Latte-1": _LATTE,
}
