"""Frames to mp4 or, where there is one, to PNG, and back. Frames are `uint8 [T, H, W, 3]`, RGB."""

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import numpy.typing as npt
from PIL import Image

from jano_dist.errors import UserError

# x264's constant rate factor: 0 is lossless, 23 the default; 12 is hard to tell from the source.
CRF = "12"

# Without a tag players guess the colour matrix from the height, so one video would change its
# colours between 480p and 720p. We convert with BT.709 and say so in the file.
BT709 = (
    "scale=out_color_matrix=bt709:out_range=tv,"
    "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
)


def write_frames(path: Path, frames: npt.NDArray[np.uint8], fps: int) -> None:
    """Write `frames` as what the suffix of `path` says: `.png`, for one frame, or a video.

    Raises:
        ValueError, OSError: see `write_video`; or several frames for an image.
    """
    if path.suffix != ".png":
        write_video(path, frames, fps)
        return
    (frame,) = frames
    Image.fromarray(frame).save(path)


def write_video(path: Path, frames: npt.NDArray[np.uint8], fps: int) -> None:
    """Write `frames` (`uint8 [T, H, W, 3]`) as H.264 yuv420p mp4 that browsers play while loading.

    The file appears under `path` only when it is complete and holds every frame; whatever ends the
    writing early, a KeyboardInterrupt too, leaves nothing behind.

    Raises:
        ValueError: wrong dtype or shape, no frames, `fps` below 1, or an odd width or height
            (yuv420p halves both; padding or rescaling would change what is compared later).
        OSError: the encoder failed, for example on a full disk.
    """
    _check_frames(frames, fps)
    height, width = frames.shape[1:3]
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial.mp4")
    try:
        encoder = imageio_ffmpeg.write_frames(
            partial, (width, height),
            fps=fps, codec="libx264", quality=None, macro_block_size=1,
            output_params=["-crf", CRF, "-movflags", "+faststart", "-vf", BT709],
        )  # fmt: skip
        with closing(encoder):  # which waits for it
            encoder.send(None)
            for frame in frames:
                encoder.send(np.ascontiguousarray(frame))
        # Nobody has looked at the encoder's exit status.
        written, _ = imageio_ffmpeg.count_frames_and_secs(str(partial))
        if written != len(frames):
            raise OSError(f"{path}: the encoder kept {written} of {len(frames)} frames; is the disk full?")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _check_frames(frames: npt.NDArray[Any], fps: int) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise ValueError(f"frames must be uint8 [T, H, W, 3], not {frames.dtype} {list(frames.shape)}")
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(f"height and width must be even for yuv420p, not {list(frames.shape[1:3])}")
    if fps < 1:
        raise ValueError(f"fps must be at least 1, not {fps}")


def read_video(path: Path) -> npt.NDArray[np.uint8]:
    """All frames of a video file, `uint8 [T, H, W, 3]`.

    Raises:
        UserError: `path` is not a file, or ffmpeg cannot read it as a video.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file: give the path of a video")
    try:
        return np.stack(list(iio.imiter(path, plugin="FFMPEG")))
    except (OSError, ValueError, IndexError, RuntimeError) as problem:
        raise UserError(f"{path} cannot be read as a video: give one that is complete") from problem


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """An image file as one frame, `uint8 [1, H, W, 3]`; what is transparent in it is not.

    Raises:
        UserError: it cannot be read as an image.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))[None]
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as problem:
        raise UserError(f"{path} cannot be read as an image: give one that is complete") from problem
