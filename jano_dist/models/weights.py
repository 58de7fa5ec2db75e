"""Looks at a diffusers folder before it is loaded, so that a broken one gives a sentence, not a traceback."""

import json
from pathlib import Path
from typing import Any

import torch

from jano_dist.errors import UserError

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


def check_folder(folder: Path, weighted: tuple[str, ...]) -> None:
    """Check that a folder is a pipeline whose weight files are all there and complete.

    Args:
        folder: a diffusers pipeline folder.
        weighted: its sub-folders that hold weights.

    Raises:
        UserError: what is missing or truncated, by name.
    """
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"{folder} is not a diffusers pipeline folder (no model_index.json): give one that is"
        )
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
        names = sorted(set(json.loads(indexes[0].read_text())["weight_map"].values()))
        files = [component / name for name in names]
    else:
        files = sorted(component.glob("*.safetensors"))
    if not files:
        raise UserError(f"{component} holds no .safetensors weights: fetch the model again, whole")
    for file in files:
        if not file.is_file():
            raise UserError(f"weight file {file} is missing: fetch it again")
    return files


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
        except ValueError as error:
            raise UserError(f"weight file {file} has a damaged header: fetch it again") from error
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    expected = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    if size != expected:
        raise UserError(
            f"weight file {file} has {size} bytes where its header says {expected}: fetch it again"
        )
    return tensors


def check_names(component: Path, wanted: set[str]) -> None:
    """Check that a component's files hold every tensor its class has.

    Loading would go on with random values for the missing ones.

    Raises:
        UserError: names the first tensor that is missing.
    """
    present = {name for file in weight_files(component) for name in check_file(file)}
    missing = sorted(wanted - present)
    if missing:
        raise UserError(
            f"{component} lacks {len(missing)} weights, {missing[0]} first: fetch the model again, whole"
        )


def stored_dtype(component: Path) -> torch.dtype:
    """The dtype most elements of a component are stored in."""
    bytes_by_dtype: dict[str, int] = {}
    for file in weight_files(component):
        for entry in check_file(file).values():
            start, end = entry["data_offsets"]
            bytes_by_dtype[entry["dtype"]] = bytes_by_dtype.get(entry["dtype"], 0) + end - start
    return _DTYPES.get(max(bytes_by_dtype, key=lambda name: bytes_by_dtype[name]), torch.float32)
