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


# Name -> part -> config; "" is model_index.json.
KNOWN: dict[str, dict[str, dict[str, Any]]] = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": _wan(num_layers=30, num_attention_heads=12, ffn_dim=8960),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": _wan(num_layers=40, num_attention_heads=40, ffn_dim=13824),
}
