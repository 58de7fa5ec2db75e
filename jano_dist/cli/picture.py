"""The size of a video that begins with a picture."""

import math
from collections.abc import Container, Sequence
from pathlib import Path

from jano_dist.config import Config, change_config
from jano_dist.errors import UserError
from jano_dist.geometry import quick_geometry
from jano_dist.picture import open_picture

_SIDES = ("video.height", "video.width")
_SMALLEST = 16  # pixels a side: of less there is nothing to see
_LONGEST = 8.0  # times as long as wide; beyond it the shorter side would vanish


def sized_by_image(settings: Config, asked: Container[str]) -> Config:
    """The config with the picture's aspect ratio and, as nearly as the model's tokens allow, its own area.

    Args:
        asked: the keys that were given. Of height and width one that is among them is kept, and the other
            follows from it; both are kept.

    Raises:
        UserError: the picture is not there, cannot be read, or is too small or too long to be of use; or
            the model is not known before it is fetched.
    """
    image = settings.sampling.image
    if image is None:
        return settings
    width, height = picture_size(image)
    free = [key for key in _SIDES if key not in asked]
    geometry = quick_geometry(settings.model.name)
    if geometry is None and free and not Path(settings.model.name).is_dir():
        raise UserError(
            f"which sizes {settings.model.name} makes is not known before it is fetched: give --height and "
            "--width with --image"
        )
    if not free or geometry is None or not geometry.takes_image:
        return settings
    wanted = _of_aspect(settings, free, height / width)
    edges = {key: geometry.vae_stride[axis] * geometry.patch[axis] for axis, key in enumerate(_SIDES, 1)}
    sizes = {key: max(edges[key], round(wanted[key]) // edges[key] * edges[key]) for key in free}
    return change_config(settings.model_dump(mode="json"), sizes, "with the image's size")


def _of_aspect(settings: Config, free: Sequence[str], ratio: float) -> dict[str, float]:
    """Height and width of an aspect ratio: at the config's area or, where one is not free, beside that."""
    height, width = settings.video.height, settings.video.width
    if len(free) == 1:
        return {"video.height": width * ratio, "video.width": height / ratio}
    area = height * width
    return {"video.height": math.sqrt(area * ratio), "video.width": math.sqrt(area / ratio)}


def picture_size(path: str) -> tuple[int, int]:
    """(width, height) in pixels, turned as the camera says.

    Raises:
        UserError: see `sized_by_image`.
    """
    width, height = open_picture(path).size
    if min(width, height) < _SMALLEST or max(width, height) > _LONGEST * min(width, height):
        raise UserError(
            f"{path} is {width}x{height} pixels: give an image of {_SMALLEST} pixels a side or more, and at "
            f"most {_LONGEST:g} times as long as wide"
        )
    return width, height
