"""wan-tiny as diffusers runs it."""

from typing import Any

import torch
from diffusers import WanPipeline

from jano_dist.models.folder import model_folder


def wan_tiny_pipeline(dtype: torch.dtype = torch.float32) -> WanPipeline:
    """diffusers' own pipeline, with its transformer's weights out of the mapped file.

    There they lie at any address, and products with unaligned weights differ in the last bits; a copy to a
    GPU would not.
    """
    pipeline: Any = WanPipeline.from_pretrained(model_folder("wan-tiny"), dtype=dtype)
    for parameter in pipeline.transformer.parameters():
        parameter.data = parameter.data.clone()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
