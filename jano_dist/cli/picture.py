"""The size of a video that begins with a picture."""

import math
from pathlib import Path

from PIL import Image, ImageOps

from jano_dist.config import Config, change_config
from jano_dist.errors import UserError
from jano_dist.geometry import quick_geometry

_SMALLEST = 16  # pixels a side: of less there is nothing to see
_LONGEST = 8.0  # times as long as wide; beyond it the shorter side would vanish


def sized_by_image(settings: Config, *, asked: bool) -> Config:
    """The config with the picture's aspect ratio and, as nearly as the model's tokens allow, its own area.

    Args:
        asked: whether height or width were given, which are then kept.

    Raises:
        UserError: the picture is not there, cannot be read, or is too small or too long to be of use.
    """
    image = settings.sampling.image
    if image is None:
        return settings
    width, height = picture_size(image)
    geometry = quick_geometry(settings.model.name)
    if asked or geometry is None or not geometry.takes_image:
        return settings
    area, ratio = settings.video.height * settings.video.width, height / width
    edges = [geometry.vae_stride[axis] * geometry.patch[axis] for axis in (1, 2)]
    wanted = math.sqrt(area * ratio), math.sqrt(area / ratio)
    sides = [max(edge, round(side) // edge * edge) for side, edge in zip(wanted, edges, strict=True)]
    sizes = {"video.height": sides[0], "video.width": sides[1]}
    return change_config(settings.model_dump(mode="json"), sizes, "with the image's size")


def picture_size(path: str) -> tuple[int, int]:
    """(width, height) in pixels, turned as the camera says.

    Raises:
        UserError: see `sized_by_image`.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no image {path}: give a file with --image")
    try:
        with Image.open(path) as picture:
            picture.load()
            width, height = ImageOps.exif_transpose(picture).size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as problem:
        raise UserError(f"{path} cannot be read as an image: give one that is complete") from problem
    if min(width, height) < _SMALLEST or max(width, height) > _LONGEST * min(width, height):
        raise UserError(
            f"{path} is {width}x{height} pixels: give an image of {_SMALLEST} pixels a side or more, and at "
            f"most {_LONGEST:g} times as long as wide"
        )
    return width, height
