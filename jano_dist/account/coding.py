"""Bytes that encoding text and picture takes, and decoding, part by part."""

import torch

from jano_dist.config import Config
from jano_dist.groups import DECODERS
from jano_dist.models.sizes import ModelSizes

Parts = dict[str, int]

_TILE, _TILE_STRIDE = 256, 192  # pixels; what diffusers' tiled decoding uses


def vae_element(config: Config) -> int:
    """Bytes per element of the VAE."""
    return int(getattr(torch, config.model.vae_dtype).itemsize)


def encoding(sizes: ModelSizes, config: Config, text_element: int, *, gpu: bool) -> Parts:
    """What takes most of text encoder, VAE and image encoder, which work one after the other.

    With its channels joined to the latent's, a picture is encoded with as many empty frames as the video has;
    the coordinator does that alone, and it takes about what decoding them does (10 to 25 % less, measured).
    """
    moments: list[Parts] = [{"text encoder": sizes.text_encoder * text_element}]
    if sizes.geometry.condition_channels:
        of_vae = decoding(sizes, config, 1, gpu=gpu)
        moments.append({f"{name}, of the picture": size for name, size in of_vae.items()})
    if sizes.image_encoder:
        moments.append({"image encoder": sizes.image_encoder * 4})  # in float32
    return max(moments, key=lambda parts: sum(parts.values()))


def decoding(sizes: ModelSizes, config: Config, world: int, *, gpu: bool) -> Parts:
    """The peak of decoding, estimated: the VAE decodes chunk by chunk of frames, and its last stage, at
    full resolution, dwarfs the others.

    With c channels there, each pixel of the picture takes 30 c for a chunk of 4 frames on its way, and
    25 c for two frames of every convolution's input (all stages), kept for the next chunk. The sum is
    measured with PyTorch's memory profiler. DistVAE gives each rank (`DECODERS` at most) a band of the rows.
    cuDNN computes with channels last, and turns a convolution's input (4 frames and the 2 before) and its
    output (4) in a workspace: 10 c. That is read, not measured.
    """
    video, tiles = config.video, config.model.vae_tiling
    pixels, element = video.height * video.width, vae_element(config)
    images = sizes.geometry.images
    spread = config.model.vae_parallel == "auto" and not tiles and not images
    area = pixels // min(world, DECODERS) if spread else pixels
    whole = video.frames * 3 * pixels * element
    if tiles:
        area = min(video.height, _TILE) * min(video.width, _TILE)
    per_pixel = sizes.vae_channels * element
    overlapping = int(whole * (_TILE / _TILE_STRIDE) ** 2) if tiles else 0
    return {
        "VAE activations": 30 * per_pixel * area,
        "VAE frame cache": 0 if images else 25 * per_pixel * area,
        **({"cuDNN workspace": (2 if images else 10) * per_pixel * area} if gpu else {}),
        "frames": 2 * whole + overlapping,  # as decoded, and joined; what becomes of them is a few at a time
    }
