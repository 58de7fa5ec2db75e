"""How alike two results are, whatever each of them is, as far as the pair makes sense."""

import math
import os
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor

from jano_dist import quality
from jano_dist.errors import UserError
from jano_dist.media import LATENTS as LATENTS_SUFFIX
from jano_dist.media import Frames, Pictures, load_latents, load_media
from jano_dist.target import LATENTS

_MEASURES = ("psnr", "ssim", "lpips")


def compare_paths(a: Path, b: Path) -> dict[str, Any]:
    """Measures between what lies at two paths; `a` is the reference.

    Two files of latents (or one and a run folder that has some): `{max_abs, relative_l2, psnr, cosine}`. Two
    folders of images: `{images: {name: measures}, mean: measures}`. All else are frames:
    `{psnr, ssim, lpips, lpips_note}`. Each with `identical`; a PSNR is then None, since JSON has no infinity.

    Raises:
        UserError: one of them cannot be read, or they cannot be compared.
    """
    if LATENTS_SUFFIX in (a.suffix.lower(), b.suffix.lower()):
        return _plain(quality.compare_latents(*(load_latents(_latents_file(path)) for path in (a, b))))
    one, other = load_media(a), load_media(b)
    if isinstance(one, Pictures) and isinstance(other, Pictures):
        return _compare_pictures(one, other)
    return _plain(quality.compare(_frames(one), _frames(other)))


def _latents_file(path: Path) -> Path:
    file = path / LATENTS if os.path.isdir(path) else path
    if file.suffix.lower() == LATENTS_SUFFIX and (os.path.isfile(file) or file == path):
        return file
    raise UserError(
        f"{path} has no latents to compare with: give another .safetensors file, or the folder of a run made "
        "with --save-latents"
    )


def _frames(media: Frames | Pictures | Tensor) -> Frames:
    assert not isinstance(media, Tensor)  # latents have only latents beside them
    return media.stacked() if isinstance(media, Pictures) else media


def _compare_pictures(a: Pictures, b: Pictures) -> dict[str, Any]:
    """Image by image: each has the one of its name in the other folder."""
    for one, other in ((a, b), (b, a)):
        lacking = sorted(one.frames.keys() - other.frames.keys())
        if lacking:
            raise UserError(
                f"{other.folder} has no image named {lacking[0]}, as {one.folder} has: "
                "compare folders whose images have the same names"
            )
    found = {name: _compare_picture(name, frame, b.frames[name]) for name, frame in a.frames.items()}
    mean = {name: _mean([each[name] for each in found.values()]) for name in _MEASURES}
    identical = all(each["identical"] for each in found.values())
    return {"images": found, "mean": mean, "identical": identical}


def _compare_picture(name: str, a: Frames, b: Frames) -> dict[str, Any]:
    try:
        return _plain(quality.compare(a, b))
    except UserError as error:
        raise UserError(f"image {name}: {error}") from error


def _mean(values: list[float | None]) -> float | None:
    """Of those that there are: an identical image has no PSNR in dB."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _plain(measures: dict[str, Any]) -> dict[str, Any]:
    identical = measures["psnr"] == math.inf
    return {**measures, "psnr": None if identical else measures["psnr"], "identical": identical}
