"""The first hour on a machine with GPUs, see `benchmarks/gpu_first_hour.py`. Each part measures one thing.

A part takes the `Hour` and returns its figures; it raises `Lie` where what was promised is not so.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from jano_dist import Config, load_config


class Lie(Exception):  # noqa: N818 - it names what it is
    """What was promised is not so; the message says what, and what to do."""


@dataclass(frozen=True)
class Hour:
    """What is measured, and how large.

    Attributes:
        device: where. gpus: ranks that there are devices for.
        dtype: of models at true width. layers: of them; 0: all.
        sizes: (frames, height, width) of videos at true width.
        folder: for runs that are made on the way.
    """

    device: torch.device
    gpus: int
    dtype: str
    layers: int
    sizes: tuple[tuple[int, int, int], ...]
    folder: Path

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def name(self) -> str:
        """Of the device."""
        return torch.cuda.get_device_name(self.device) if self.cuda else "cpu"

    def true_width(self, size: tuple[int, int, int], **overrides: object) -> Config:
        """Wan2.1-14B's config at a size."""
        own = dict(zip(("video.frames", "video.height", "video.width"), size, strict=True))
        return load_config("wan2.1-14b-720p", overrides={**own, "model.dtype": self.dtype, **overrides})


def promised(holds: bool, sentence: str) -> None:
    """Go on if it holds.

    Raises:
        Lie: it does not; with the sentence.
    """
    if not holds:
        raise Lie(sentence)
