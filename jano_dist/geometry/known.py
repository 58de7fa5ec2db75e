"""The config files of models on the hub, as far as they differ from their classes' defaults.

A plan for a cluster is made on a machine that has neither the files nor a network.
"""

from typing import Any

_UMT5_XXL = {
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
    "text_encoder": {
        "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
    },
}  # fmt: skip


# Name -> part -> config; "" is model_index.json.
KNOWN: dict[str, dict[str, dict[str, Any]]] = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": _wan(num_layers=30, num_attention_heads=12, ffn_dim=8960),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": _wan(num_layers=40, num_attention_heads=40, ffn_dim=13824),
    "maxin-cn/Latte-1": _LATTE,
}
