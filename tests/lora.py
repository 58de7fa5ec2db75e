"""LoRAs of random weights, as diffusers and peft save them."""

from pathlib import Path
from typing import Any

import torch
from diffusers import WanPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

# Layers of Wan, and of the images' families.
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "add_k_proj", "proj_mlp", "ff.net.2")


def write_lora(
    folder: Path,
    transformer: Any,
    *,
    seed: int,
    strength: float = 0.3,
    alpha: int = 8,
    pipeline: Any = WanPipeline,
) -> Path:
    """A LoRA of rank 4 for a transformer, which is changed: give one that nobody else uses."""
    name = f"lora-{seed}.safetensors"
    transformer.add_adapter(LoraConfig(r=4, lora_alpha=alpha, target_modules=list(TARGETS)), "made")
    generator = torch.Generator().manual_seed(seed)
    for key, weight in transformer.named_parameters():
        if "lora_" in key:
            scale = strength * weight.shape[1] ** -0.5
            weight.data = scale * torch.randn(weight.shape, generator=generator)
    layers = get_peft_model_state_dict(transformer, adapter_name="made")
    config = transformer.peft_config["made"].to_dict()
    pipeline.save_lora_weights(
        folder, transformer_lora_layers=layers, weight_name=name, transformer_lora_adapter_metadata=config
    )
    transformer.delete_adapters("made")
    return folder / name
