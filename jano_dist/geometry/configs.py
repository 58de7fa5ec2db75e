"""The config files of a model, as far as its sizes need them."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from jano_dist.geometry.base import Geometry

# Part of a pipeline -> what its config file says; "" is model_index.json.
Configs = Mapping[str, Mapping[str, Any]]

# Fields that are no sizes, or may be 0.
_WORDS = (
    *("joint", "guidance", "images", "needs_image", "first_frame"),
    *("condition_channels", "image_tokens", "image_dim", "boundary", "second_layers"),
)


def check_sizes(geometry: Geometry) -> Geometry:
    """The geometry, if all its sizes are whole numbers above 0.

    Raises:
        ValueError: names the one that is not.
    """
    for name in (field.name for field in fields(geometry) if field.name not in _WORDS):
        size = getattr(geometry, name)
        if not all(type(edge) is int and edge > 0 for edge in (size if isinstance(size, tuple) else (size,))):
            raise ValueError(f"its config.json gives {size!r} for {name}")
    return geometry
