"""Looks at a diffusers folder before it is loaded, so that a broken one gives a sentence, not a traceback."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jano_dist.errors import UserError

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


def read_index(folder: Path) -> dict[str, Any]:
    """A pipeline folder's model_index.json.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"{folder} is not a diffusers pipeline folder (no model_index.json): give one that is"
        )
    return _read_object(folder / "model_index.json")


def check_folder(folder: Path, weighted: Iterable[str]) -> None:
    """Check that a pipeline's parts are all there and that its weight files are complete.

    Args:
        folder: a diffusers pipeline folder. weighted: its sub-folders that hold weights.

    Raises:
        UserError: what is missing or truncated, by name.
    """
    for component, classes in read_index(folder).items():  # such as "vae": ["diffusers", "AutoencoderKLWan"]
        if isinstance(classes, list) and any(classes) and not (folder / component).is_dir():
            raise UserError(f"{folder} has no folder {component}: fetch the model again, whole")
    for component in weighted:
        if not (folder / component / "config.json").is_file():
            raise UserError(f"{folder / component} has no config.json: fetch the model again, whole")
        for file in weight_files(folder / component):
            check_file(file)


def weight_files(component: Path) -> list[Path]:
    """The safetensors files of one component, by its index where there is one.

    Raises:
        UserError: none, or one the index names is missing.
    """
    indexes = sorted(component.glob("*.safetensors.index.json"))
    if indexes:
        files = [component / name for name in _indexed(indexes[0])]
    else:
        files = sorted(component.glob("*.safetensors"))
    if not files:
        raise UserError(f"{component} holds no .safetensors weights: fetch the model again, whole")
    for file in files:
        if not file.is_file():
            raise UserError(f"weight file {file} is missing: fetch it again")
    return files


def _indexed(index: Path) -> list[str]:
    """The files an index names."""
    try:
        return sorted(set(_read_object(index)["weight_map"].values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is damaged: fetch it again") from error


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: fetch it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged: fetch it again")
    return content


def check_file(file: Path) -> dict[str, Any]:
    """Read a safetensors header and compare the file's size with it; returns the header's tensors.

    Raises:
        UserError: the file is truncated or no safetensors file.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= size - 8:
            raise UserError(
                f"weight file {file} is truncated or not safetensors ({size} bytes): fetch it again"
            )
        try:
            header = json.loads(stream.read(length))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            expected = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"weight file {file} has a damaged header: fetch it again") from error
    if size != expected:
        raise UserError(
            f"weight file {file} has {size} bytes where its header says {expected}: fetch it again"
        )
    return tensors


def check_weights(component: Path, skeleton: nn.Module) -> None:
    """Check that a component's files hold every tensor of its class, in the size its config gives.

    Loading would go on with random values for the missing ones.

    Args:
        component: its folder.
        skeleton: an object of its class, made from its config on the `meta` device.

    Raises:
        UserError: names the first tensor that is missing or of another size.
    """
    present = {name: entry for file in weight_files(component) for name, entry in check_file(file).items()}
    names: dict[int, list[str]] = {}  # tied weights have several, and the files need one
    weights = skeleton.state_dict(keep_vars=True)
    for name, weight in weights.items():
        names.setdefault(id(weight), []).append(name)
    missing = sorted(min(group) for group in names.values() if not present.keys() & group)
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise UserError(f"{component} lacks the weight {missing[0]}{more}: fetch the model again, whole")
    for name in sorted(present.keys() & weights):
        stored, wanted = list(present[name]["shape"]), list(weights[name].shape)
        if stored != wanted:
            raise UserError(
                f"{component}: weight {name} has shape {stored}, its config.json asks for {wanted}: "
                "fetch the model again, whole"
            )


def stored_dtype(component: Path) -> torch.dtype:
    """The dtype most elements of a component are stored in."""
    elements: Counter[str] = Counter()
    for file in weight_files(component):
        for entry in check_file(file).values():
            elements[entry["dtype"]] += math.prod(entry["shape"])
    most = max(elements, key=lambda name: elements[name], default="F32")
    return _DTYPES.get(most, torch.float32)


# Files up to this size are read whole; of larger ones, this much at evenly spread places.
_SAMPLE_BYTES, _SAMPLES = 2**16, 16


def folder_digest(folder: Path) -> bytes:
    """32 bytes that tell the weight and config files of two model folders apart; see `files_digest`."""
    return files_digest(folder, (*folder.rglob("*.json"), *folder.rglob("*.safetensors")))


def files_digest(folder: Path, files: Iterable[Path]) -> bytes:
    """32 bytes that tell files below a folder apart without reading gigabytes.

    Names, sizes and samples of every file: other weights of the same shapes differ
    in every sample, while one changed number in between would go unnoticed.
    """
    digest = hashlib.sha256()
    for path in sorted(files):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)} {size}\n".encode())
        places = range(0, size, max(_SAMPLE_BYTES, size // _SAMPLES))
        with path.open("rb") as file:
            for place in places:
                file.seek(place)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.digest()
