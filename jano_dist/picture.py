"""A picture that a video begins with, read from its file."""

from pathlib import Path

from PIL import Image, ImageOps

from jano_dist.errors import UserError


def open_picture(path: str) -> Image.Image:
    """A picture as RGB, turned as its camera says.

    Raises:
        UserError: it is not there, or cannot be read.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no image {path}: give a file with --image")
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as problem:
        raise UserError(f"{path} cannot be read as an image: give one that is complete") from problem
