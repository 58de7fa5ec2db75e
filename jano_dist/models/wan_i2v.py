"""A diffusers `WanImageToVideoPipeline` as a `DiffusionModel`: what the picture becomes is diffusers' own."""

from pathlib import Path
from typing import Any

import torch
from diffusers.utils import load_image
from PIL import Image

from jano_dist.errors import UserError
from jano_dist.models.base import Conditions
from jano_dist.models.folder import Parts, model_folder, sentence
from jano_dist.models.loading import Adapter, Held
from jano_dist.models.text import TextEncoder
from jano_dist.models.wan_pipeline import WanModel, WanText, check_wan
from jano_dist.tokens.grid import Shape3


class WanImageModel(WanModel):
    """Wan image-to-video: Wan2.1's, and those without an image encoder. See `DiffusionModel`."""

    def __init__(self, pipeline: Any, text: TextEncoder, parts: Parts, held: Held) -> None:
        super().__init__(pipeline, text, parts, held)
        self._parts = parts

    def look(self, image: str, latent: Shape3) -> Conditions:
        picture = open_picture(image)
        frames, height, width = self._pixels(latent)
        pixels = self._pipeline.video_processor.preprocess(picture, height=height, width=width)
        _, condition = self._pipeline.prepare_latents(
            pixels.to(self.device, dtype=torch.float32),
            1,
            self.geometry.channels,
            height,
            width,
            frames,
            torch.float32,
            self.device,
            latents=torch.zeros(1, self.geometry.channels, *latent, device=self.device),
        )
        found = {"latent": condition.to(self.dtype)}
        if self.geometry.image_tokens:
            found["image"] = self._states(picture).to(self.dtype)
        return found

    def _states(self, picture: Image.Image) -> torch.Tensor:
        """CLIP's states [1, K, image_dim]; the encoder is in memory only meanwhile."""
        kept = ("image_encoder", "image_processor")
        others = {
            name: None
            for name, kind in self._parts.index.items()
            if isinstance(kind, list | tuple) and name not in kept
        }
        folder = model_folder(self._parts.source)
        with sentence(str(folder)):
            pipeline = self._parts.pipeline.from_pretrained(
                folder, dtype={"image_encoder": torch.float32}, **others
            ).to(self.device)
            states: torch.Tensor = pipeline.encode_image(picture, self.device)
        return states


def open_picture(path: str) -> Image.Image:
    """A picture as RGB, turned as its camera says.

    Raises:
        UserError: it cannot be read.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no image {path}: give a file with --image")
    try:
        picture: Image.Image = load_image(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as problem:
        raise UserError(f"{path} cannot be read as an image: give one that is complete") from problem
    return picture


def check_i2v(parts: Parts) -> None:
    """As `check_wan`; and what would have to be done per token is refused.

    Raises:
        UserError: configs that do not go together, or a kind that is not supported.
    """
    if parts.index.get("expand_timesteps"):
        raise UserError(
            f"{parts.source} conditions its first frame by timesteps per token (Wan2.2 TI2V), which is not "
            "supported for images: use it as text-to-video, or give a Wan2.1 image-to-video model"
        )
    check_wan(parts)


WAN_I2V = Adapter(check_i2v, WanText, WanImageModel)
