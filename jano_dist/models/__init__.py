"""Models behind one protocol. `read_geometry` and `load_model` turn a name or folder into one."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jano_dist.models.base import (
    Branch,
    Conditions,
    DiffusionModel,
    Geometry,
    cut_texts,
    split_conditions,
    with_first_frame,
)
from jano_dist.models.folder import Parts, model_folder, read_parts, whole_parts
from jano_dist.models.joint_pipeline import FLUX, SD3
from jano_dist.models.latte import LATTE
from jano_dist.models.loading import Adapter, Held, load_adapter
from jano_dist.models.lora import Loras, check_loras, loras_digest
from jano_dist.models.wan_pipeline import WAN
from jano_dist.models.weights import folder_digest
from jano_dist.picture import open_picture

__all__ = [
    "Branch",
    "Conditions",
    "DiffusionModel",
    "Geometry",
    "check_model",
    "cut_texts",
    "image_digest",
    "load_model",
    "model_digest",
    "read_geometry",
    "split_conditions",
    "with_first_frame",
]

# By the name of the family (`jano_dist.geometry.FAMILIES`).
_ADAPTERS: dict[str, Adapter] = {"wan": WAN, "wan-i2v": WAN, "flux": FLUX, "sd3": SD3, "latte": LATTE}


def read_geometry(name: str) -> Geometry:
    """Sizes of a model by name or folder, from its config files alone.

    Raises:
        UserError: unknown model, or one whose configs do not go together.
    """
    return _checked_parts(name)[1]


def check_model(name: str, loras: Loras = (), loras_2: Loras = ()) -> tuple[Path, Parts]:
    """The folder of a model whose files are whole, and its parts.

    Args:
        loras: to be fused into it. loras_2: into its second expert, if it has one.

    Raises:
        UserError: files are missing, truncated or without weights the model has, or a LoRA is not for it.
    """
    parts, _ = _checked_parts(name)
    folder, parts = whole_parts(name, parts)
    check_loras(loras, parts.pipeline, parts.skeletons["transformer"])
    if "transformer_2" in parts.skeletons:
        check_loras(loras_2, parts.pipeline, parts.skeletons["transformer_2"])
    return folder, parts


def _checked_parts(name: str) -> tuple[Parts, Geometry]:
    parts = read_parts(name)
    _ADAPTERS[parts.family.name].check(parts)
    return parts, parts.geometry


def load_model(name: str, *, begin: Callable[[], object] = lambda: None, **held: Any) -> DiffusionModel:
    """Load a model by name or folder, after looking whether its files are whole.

    Args:
        name: `wan-tiny`, a diffusers folder, or a hub name.
        begin: called when the files have been found whole and reading them begins.
        held: see `Held`.

    Raises:
        UserError: unknown model, or files missing, truncated or without weights the model has, or a LoRA that
            is not for it.
    """
    folder, parts = check_model(name, held.get("loras", ()), held.get("loras_2", ()))
    begin()
    return load_adapter(_ADAPTERS[parts.family.name], folder, parts, Held(**held))


def model_digest(name: str, loras: Loras = ()) -> bytes:
    """Bytes that tell the files of two models, LoRAs included, apart; see `files_digest`.

    Raises:
        UserError: the model, or a LoRA, is neither here nor can it be fetched.
    """
    return folder_digest(model_folder(name)) + loras_digest(loras)


def image_digest(image: str | None) -> bytes:
    """SHA-256 of a picture's file; empty where there is none, or none on this machine.

    Raises:
        UserError: it cannot be read.
    """
    if image is None or not Path(image).is_file():
        return b""
    open_picture(image)  # what cannot be read is said before minutes of loading
    return hashlib.sha256(Path(image).read_bytes()).digest()
