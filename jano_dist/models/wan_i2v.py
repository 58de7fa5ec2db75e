"""What a picture becomes for a Wan transformer: diffusers' `WanImageToVideoPipeline` says."""

from typing import Any

import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image

from jano_dist.models.base import FIRST_FRAME, Conditions
from jano_dist.models.folder import Parts, model_folder, sentence
from jano_dist.picture import open_picture
from jano_dist.tokens.grid import Shape3


def look(
    pipeline: Any, parts: Parts, image: str, pixels: Shape3, device: torch.device, dtype: torch.dtype
) -> Conditions:
    """The conditions of a video that begins with a picture.

    Wan2.1 and Wan2.2 of two experts join the encoded picture, and a mask, to the latent's channels
    ("latent", [1, c, T, H, W]); Wan2.1 has CLIP's states as extra keys, too ("image", [1, K, image_dim]).
    Wan2.2 of one expert has it as the latent's first frame (`FIRST_FRAME`).

    Args:
        pipeline: of the model, with its VAE. pixels: (frames, height, width) of the video.
        dtype: of the transformer.

    Raises:
        UserError: the picture cannot be read.
    """
    frames, height, width = pixels
    picture, geometry = open_picture(image), parts.geometry
    maker = pipeline
    if not isinstance(pipeline, WanImageToVideoPipeline):  # as one loads a WanPipeline's folder for pictures
        maker = WanImageToVideoPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=pipeline.vae,
            scheduler=pipeline.scheduler,
            expand_timesteps=geometry.first_frame,
        )
    channels, (_, down, _) = geometry.channels, geometry.vae_stride
    frame = torch.zeros(1, channels, 1, height // down, width // down, device=device)
    _, condition, *_ = maker.prepare_latents(
        maker.video_processor.preprocess(picture, height=height, width=width).to(device, torch.float32),
        1,
        channels,
        height,
        width,
        frames,
        torch.float32,
        device,
        latents=frame,  # noise, of which we have our own: only its device and dtype are looked at
    )
    if geometry.first_frame:
        return {FIRST_FRAME: condition}
    found = {"latent": condition.to(dtype)}
    if geometry.image_tokens:
        found["image"] = _states(parts, picture, device).to(dtype)
    return found


def _states(parts: Parts, picture: Image.Image, device: torch.device) -> torch.Tensor:
    """CLIP's states [1, K, image_dim]; the encoder is in memory only meanwhile."""
    kept = ("image_encoder", "image_processor")
    others = {
        name: None
        for name, kind in parts.index.items()
        if isinstance(kind, list | tuple) and name not in kept
    }
    folder = model_folder(parts.source)
    with sentence(str(folder)):
        pipeline = parts.pipeline.from_pretrained(folder, dtype={"image_encoder": torch.float32}, **others)
        states: torch.Tensor = pipeline.to(device).encode_image(picture, device)
    return states
