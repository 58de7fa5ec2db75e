"""What can be compared, read from the disk: videos, images, folders of images, runs, latents."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from jano_dist.errors import UserError
from jano_dist.target import is_run, result_of
from jano_dist.video import read_image, read_video

Frames = npt.NDArray[np.uint8]  # [T, H, W, 3]

LATENTS = ".safetensors"
IMAGES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Pictures:
    """A folder of images: name without suffix -> frame [1, H, W, 3], in the order of names."""

    folder: Path
    frames: dict[str, Frames]

    def stacked(self) -> Frames:
        """The images as the frames of a video.

        Raises:
            UserError: they differ in size.
        """
        sizes = {frame.shape: name for name, frame in self.frames.items()}
        if len(sizes) > 1:
            first, other, *_ = sizes.values()
            raise UserError(
                f"{self.folder} holds images of several sizes ({first} and {other}), which are no frames of "
                "a video: compare it with a folder of images"
            )
        return np.concatenate(list(self.frames.values()))


def load_media(path: Path) -> Frames | Pictures | Tensor:
    """A video, image or run folder as frames `[T, H, W, 3]`, a folder of images, or a file of latents.

    Raises:
        UserError: it is nothing of these, or cannot be read.
    """
    if path.suffix.lower() == LATENTS:
        return load_latents(path)
    if os.path.isdir(path) and not os.path.isfile(result_of(path)) and not is_run(path):
        return _load_folder(path)
    return load_frames(path)


def load_frames(path: Path) -> Frames:
    """The frames `[T, H, W, 3]` of a video or image, or of that in a run folder.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    file = result_of(path) if os.path.isdir(path) else path
    _require_file(file)
    return read_image(file) if file.suffix.lower() in IMAGES else read_video(file)


def load_latents(path: Path) -> Tensor:
    """The tensor `latents` of a safetensors file, in float64.

    Raises:
        UserError: there is none, or it holds what is no number.
    """
    _require_file(path)
    try:
        latents = load_file(path)["latents"].double()
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors: give one that is complete") from error
    except KeyError as error:
        raise UserError(
            f"{path} holds no tensor 'latents': give a file that --save-latents has written"
        ) from error
    if not latents.numel() or not bool(torch.isfinite(latents).all()):
        raise UserError(f"the latents in {path} are not all finite numbers: make them anew")
    return latents


def _require_file(path: Path) -> None:
    if not os.path.isfile(path):  # false also for a name that is too long
        problem = "is not a file" if os.path.exists(path) else "does not exist"
        raise UserError(
            f"{path} {problem}: give a video, an image, latents, a folder of images, or that of a "
            "finished run"
        )


def _load_folder(folder: Path) -> Pictures:
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGES)
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}): give another folder") from error
    if not files:
        raise UserError(
            f"{folder} is neither the folder of a finished run nor one of images ({', '.join(IMAGES)}): "
            "give one of the two"
        )
    frames: dict[str, Frames] = {}
    for file in files:
        if file.stem in frames:
            raise UserError(f"{folder} holds several images named {file.stem}: keep one of them")
        frames[file.stem] = read_image(file)
    return Pictures(folder, frames)
