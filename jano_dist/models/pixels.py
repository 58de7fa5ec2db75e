"""What a VAE decodes to, as 8-bit frames."""

import numpy as np
import torch
from torch import Tensor

_CHUNK = 4  # frames that are in float32 at once, as many as Wan's VAE decodes at a time


def to_frames(video: Tensor) -> np.ndarray:
    """[3, T, H, W] of any float dtype -> uint8 [T, H, W, 3] in host memory; -1 is black, what is beyond -1..1
    is clamped.

    Bit for bit what diffusers' `postprocess` and rounding give, but made where the video lies: a byte per
    value leaves the device, and no more than a few frames are in float32 at once.
    """
    _, count, height, width = video.shape
    frames = torch.empty(count, height, width, 3, dtype=torch.uint8)
    for chunk, place in zip(video.split(_CHUNK, dim=1), frames.split(_CHUNK), strict=True):
        levels = chunk.to(torch.float32, copy=True).mul_(0.5).add_(0.5).clamp_(0, 1).mul_(255).round_()
        place.copy_(levels.to(torch.uint8).permute(1, 2, 3, 0))
    return frames.numpy()
