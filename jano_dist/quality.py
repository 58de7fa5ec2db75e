"""How far one video is from another: PSNR, SSIM, FLIP and, where its weights are there, LPIPS; and how much
one flickers. And how far latents are apart.

Videos are `uint8 [T, H, W, 3]`. Numbers between two mp4 files also hold what encoding took from each:
on smooth synthetic frames a true 54 dB reads 45 dB and 44 reads 42, while 34 dB and less read right.
"""

import math
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from jano_dist.errors import UserError, count

Frames = npt.NDArray[np.uint8]  # [T, H, W, 3]

SSIM_WINDOW = 7  # pixels, the side of skimage's default window
LPIPS_MIN_SIDE = 31  # pixels; AlexNet's second pooling leaves nothing of less


def psnr(a: Frames, b: Frames) -> float:
    """Peak signal-to-noise ratio in dB over the whole video, `inf` when they are equal.

    10 log10(255^2 / MSE), the mean squared error over all frames, pixels and channels at once
    (not the mean of per-frame values, which one perfect frame would make infinite).

    Raises:
        UserError: the shapes differ.
    """
    _check_pair(a, b)
    # Frame by frame in whole numbers: exact, and no second copy of a long video in float64.
    errors = (x.astype(np.int32) - y for x, y in zip(a, b, strict=True))  # [H, W, 3] each
    squared = sum(int(np.square(error).sum(dtype=np.int64)) for error in errors)
    return math.inf if squared == 0 else 10 * math.log10(255**2 * a.size / squared)


def ssim(a: Frames, b: Frames) -> float:
    """Structural similarity, at most 1: the mean over frames of skimage's on RGB (7x7 window).

    Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity".

    Raises:
        UserError: the shapes differ, or a frame is smaller than the window.
    """
    _check_pair(a, b)
    if min(a.shape[1:3]) < SSIM_WINDOW:
        raise UserError(
            f"SSIM needs frames of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, not {_shape(a)}: "
            "compare larger videos"
        )
    scores = [structural_similarity(x, y, channel_axis=-1, data_range=255) for x, y in zip(a, b, strict=True)]
    return float(np.mean(scores))


def lpips_unavailable_reason() -> str | None:
    """Why LPIPS cannot be computed here, in one sentence; None if it can. Downloads nothing."""
    try:
        import_module("torchmetrics.image.lpip")
        models = import_module("torchvision.models")
    except Exception as problem:  # a torchvision that does not match its torch raises RuntimeError
        return f"LPIPS needs torchmetrics and torchvision ({problem})."
    url: str = models.AlexNet_Weights.IMAGENET1K_V1.url
    weights = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    return None if weights.is_file() else f"LPIPS needs the AlexNet weights from {url} as {weights}."


def lpips(a: Frames, b: Frames) -> float | None:
    """Learned perceptual distance (AlexNet), the mean over frames, 0 for equal; None if unavailable.

    Zhang et al. 2018, "The unreasonable effectiveness of deep features as a perceptual metric",
    through torchmetrics. Weights are only ever read from torch.hub's cache.

    Raises:
        UserError: the shapes differ, or a frame is smaller than the network takes.
    """
    _check_pair(a, b)
    if lpips_unavailable_reason() is not None:
        return None
    if min(a.shape[1:3]) < LPIPS_MIN_SIDE:
        raise UserError(
            f"LPIPS needs frames of at least {LPIPS_MIN_SIDE} pixels a side, not {_shape(a)}: "
            "compare larger videos"
        )
    metric = import_module("torchmetrics.image.lpip").LearnedPerceptualImagePatchSimilarity(
        net_type="alex", normalize=True
    )
    with torch.inference_mode():
        for x, y in zip(a, b, strict=True):
            metric.update(_unit_nchw(x), _unit_nchw(y))
        return float(metric.compute())


def flip_unavailable_reason() -> str | None:
    """Why FLIP cannot be computed here, in one sentence; None if it can."""
    try:
        import_module("flip_evaluator")
    except Exception as problem:  # a library built for another machine may raise anything
        return f"FLIP needs flip-evaluator ({problem})."
    return None


def flip(a: Frames, b: Frames) -> float | None:
    """What is seen when two pictures alternate, 0 (equal) to 1: the mean over pixels and frames.

    Andersson et al. 2020, "FLIP: a difference evaluator for alternating images", through flip-evaluator at
    its usual viewing distance (67 pixels per degree). `a` is the reference. None if unavailable.

    Raises:
        UserError: the shapes differ.
    """
    _check_pair(a, b)
    if flip_unavailable_reason() is not None:
        return None
    evaluate = import_module("flip_evaluator").evaluate
    errors = [evaluate(_unit(x), _unit(y), "LDR", applyMagma=False)[1] for x, y in zip(a, b, strict=True)]
    return float(np.mean(errors))


def flicker(video: Frames) -> float | None:
    """Temporal flickering as VBench defines it: 1 where nothing moves, less elsewhere; None for one frame.

    (255 - MAE) / 255, MAE being the mean absolute difference of neighbouring frames. Huang et al. 2024,
    "VBench: comprehensive benchmark suite for video generative models". Movement counts, too: compare it
    with that of the full run.
    """
    if len(video) < 2:
        return None
    return 1 - float(np.mean([np.abs(x.astype(np.int16) - y).mean() for x, y in pairwise(video)])) / 255


def measures(full: Frames, case: Frames) -> dict[str, float | None]:
    """`{psnr, ssim, flip, lpips, flicker}` of a video against the full run's; None where the frames are too
    small for a measure, or what it needs is not here.

    Raises:
        UserError: the shapes differ.
    """
    side = min(full.shape[1:3])
    return {
        "psnr": psnr(full, case),
        "ssim": ssim(full, case) if side >= SSIM_WINDOW else None,
        "flip": flip(full, case),
        "lpips": lpips(full, case) if side >= LPIPS_MIN_SIDE else None,
        "flicker": flicker(case),
    }


def compare(a: Frames, b: Frames) -> dict[str, Any]:
    """`{psnr, ssim, lpips, lpips_note}`; `lpips` is None with the reason in `lpips_note`, or the reverse.

    Raises:
        UserError: the shapes differ, or the frames are too small for a metric.
    """
    return {
        "psnr": psnr(a, b),
        "ssim": ssim(a, b),
        "lpips": lpips(a, b),
        "lpips_note": lpips_unavailable_reason(),
    }


def compare_latents(a: Tensor, b: Tensor) -> dict[str, float | None]:
    """`{max_abs, relative_l2, psnr, cosine}` of two latents of one shape; `a` is the reference.

    relative_l2 = |a - b| / |a|. psnr = 20 log10((max a - min a) / RMSE), `inf` when they are equal. None
    where a measure has no value: of a reference that is zero, or the same everywhere.

    Raises:
        UserError: the shapes differ.
    """
    if a.shape != b.shape:
        raise UserError(
            f"the latents differ in shape, {list(a.shape)} and {list(b.shape)}: compare runs of the same size"
        )
    a, b = a.double(), b.double()
    error, size, spread = a - b, float(a.norm()), float(a.max() - a.min())
    rmse, both = float(error.square().mean().sqrt()), size * float(b.norm())
    return {
        "max_abs": float(error.abs().max()),
        "relative_l2": float(error.norm()) / size if size else None,
        "psnr": math.inf if rmse == 0 else 20 * math.log10(spread / rmse) if spread else None,
        "cosine": float((a * b).sum()) / both if both else None,
    }


def _unit(frame: Frames) -> npt.NDArray[np.float32]:
    return np.divide(frame, 255, dtype=np.float32)


def _unit_nchw(frame: Frames) -> torch.Tensor:
    return torch.from_numpy(frame.copy()).permute(2, 0, 1).unsqueeze(0).float() / 255  # [1, 3, H, W]


def _check_pair(a: Frames, b: Frames) -> None:
    for video in (a, b):
        if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or not video.size:
            raise ValueError(f"a video must be uint8 [T, H, W, 3], not {video.dtype} {list(video.shape)}")
    if a.shape != b.shape:
        raise UserError(f"the two differ in size, {_shape(a)} and {_shape(b)}: compare runs of the same size")


def _shape(video: Frames) -> str:
    frames, height, width, _ = video.shape
    return f"{count(frames, 'frame')} of {width}x{height}"
