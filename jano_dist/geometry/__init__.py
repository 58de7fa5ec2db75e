"""Sizes of a model, from its config files alone. No torch at import: a wrong size is refused at once."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jano_dist.errors import UserError
from jano_dist.geometry.base import Geometry, Shape3
from jano_dist.geometry.configs import Configs
from jano_dist.geometry.joint import flux_geometry, sd3_geometry
from jano_dist.geometry.known import KNOWN
from jano_dist.geometry.latte import latte_geometry
from jano_dist.geometry.wan import WanGeometry, wan_geometry

__all__ = [
    "FAMILIES",
    "KNOWN",
    "Configs",
    "Family",
    "Geometry",
    "Shape3",
    "WanGeometry",
    "family_of",
    "find_model",
    "quick_geometry",
    "usual_config",
]

_ASSETS = Path(__file__).parents[1] / "assets"


@dataclass(frozen=True)
class Family:
    """Pipelines that work alike.

    Attributes:
        name: of the family. pipelines: diffusers' classes, as model_index.json names them.
        geometry: config files -> sizes; raises ValueError, KeyError or TypeError for what makes no sense.
    """

    name: str
    pipelines: tuple[str, ...]
    geometry: Callable[[Configs], Geometry]


FAMILIES = (
    Family("wan", ("WanPipeline",), wan_geometry),
    Family("wan-i2v", ("WanImageToVideoPipeline",), wan_geometry),
    Family("flux", ("FluxPipeline",), flux_geometry),
    Family("sd3", ("StableDiffusion3Pipeline",), sd3_geometry),
    Family("latte", ("LattePipeline",), latte_geometry),
)


def family_of(pipeline: str, source: str) -> Family:
    """The family of a diffusers pipeline class.

    Args:
        pipeline: `_class_name` of model_index.json. source: the model, for the sentence.

    Raises:
        UserError: none of ours.
    """
    for family in FAMILIES:
        if pipeline in family.pipelines:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.pipelines)
    raise UserError(
        f"{source} holds a {pipeline}, which is not supported: give another model, one of {known}"
    )


def quick_geometry(name: str) -> Geometry | None:
    """The geometry of a model that is on this machine or well known; None where it takes more to say.

    Raises:
        UserError: neither a folder nor a hub name.
    """
    source = find_model(name)
    try:
        configs = _configs(name, source)
        return family_of(configs[""]["_class_name"], source).geometry(configs)
    except (OSError, ValueError, TypeError, KeyError, UserError):
        return None  # what is wrong with a model is said by whoever loads it


def usual_config(name: str) -> str | None:
    """The shipped config for a model that is on this machine or well known; None where there is none.

    Raises:
        UserError: neither a folder nor a hub name.
    """
    geometry, source = quick_geometry(name), find_model(name)
    if geometry is None:
        return None
    match family_of(_configs(name, source)[""]["_class_name"], source).name:
        case "flux":
            return "flux.1-dev-1024" if geometry.guidance == "embedded" else "flux.1-schnell-1024"
        case "sd3":
            return "sd3-1024"
        case "latte":
            return "latte-512"
        case "wan-i2v" if geometry.experts > 1:
            return "wan2.2-i2v-a14b-720p"
        case "wan-i2v" if not geometry.first_frame:
            return "wan2.1-i2v-14b-480p"
    if geometry.experts > 1:
        return "wan2.2-t2v-a14b-720p"
    if geometry.first_frame:
        return "wan2.2-ti2v-5b-720p"
    sizes = {
        (12, 8): "wan2.1-1.3b-480p",
        (40, 8): "wan2.1-14b-480p",
    }  # by heads and the VAE's stride
    return sizes.get((geometry.heads, geometry.vae_stride[1]))


def _configs(name: str, source: str) -> Configs:
    """The config files that sizes need, of a folder or a known name."""
    if name in KNOWN and not Path(source).is_dir():
        return KNOWN[name]
    files = {"": "model_index.json", "transformer": "transformer/config.json", "vae": "vae/config.json"}
    if Path(source, "image_encoder", "config.json").is_file():
        files["image_encoder"] = "image_encoder/config.json"
    texts = {part: Path(source, file).read_text(encoding="utf-8") for part, file in files.items()}
    return {part: json.loads(text) for part, text in texts.items()}


def find_model(name: str) -> str:
    """Where a model is read from: a folder on this machine, or the hub name as it is.

    Raises:
        UserError: neither a folder nor a hub name.
    """
    if not name:
        raise UserError(
            "the model has no name: give wan-tiny, an existing folder, or a hub name like org/name"
        )
    if name in {folder.name for folder in _ASSETS.iterdir() if folder.is_dir()}:
        return str(_ASSETS / name)
    if os.path.isdir(name) or re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return name
    raise UserError(
        f"there is no model folder {name!r}: give wan-tiny, an existing folder, or a hub name like org/name"
    )
