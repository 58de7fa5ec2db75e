import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from jano_dist.errors import UserError
from jano_dist.media import load_frames
from jano_dist.quality import (
    compare,
    flicker,
    flip,
    flip_unavailable_reason,
    lpips,
    lpips_unavailable_reason,
    measures,
    psnr,
    ssim,
)

MODULES = (
    "torchmetrics",
    "torchmetrics.image",
    "torchmetrics.image.lpip",
    "torchvision",
    "torchvision.models",
)


def noise(seed: int, frames: int = 3, height: int = 40, width: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def flat(value: int) -> np.ndarray:
    return np.full((2, 16, 16, 3), value, np.uint8)


@pytest.mark.parametrize("offset", [1, 5, 40])
def test_psnr_of_a_constant_offset(offset: int) -> None:
    a = noise(0) // 2
    expected = 20 * math.log10(255 / offset)
    assert psnr(a, a + np.uint8(offset)) == pytest.approx(expected, abs=1e-9)
    assert psnr(a + np.uint8(offset), a) == pytest.approx(expected, abs=1e-9)  # no uint8 wrap-around


def test_psnr_is_over_the_whole_video() -> None:
    a = flat(100)
    b = a.copy()
    b[1] += 10  # one frame equal, one off by 10: MSE 50
    assert psnr(a, b) == pytest.approx(10 * math.log10(255**2 / 50))
    assert psnr(a, a) == math.inf
    assert psnr(flat(0), flat(255)) == 0


def test_ssim_of_flat_frames() -> None:
    """Without variance only the luminance term of Wang et al. 2004 is left."""
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 140 + c1) / (100**2 + 140**2 + c1)
    assert ssim(flat(100), flat(140)) == pytest.approx(expected, abs=1e-9)


def test_ssim_is_the_mean_over_frames() -> None:
    a, b = noise(0), noise(1)
    b[0] = a[0]
    frames = [structural_similarity(x, y, channel_axis=2, data_range=255) for x, y in zip(a, b, strict=True)]
    assert ssim(a, a) == 1
    assert ssim(a, b) == pytest.approx(sum(frames) / 3)
    assert 1 / 3 < ssim(a, b) < 0.5


@pytest.mark.parametrize("metric", [psnr, ssim, flip, lpips, compare, measures])
def test_sizes_that_differ_are_both_named(metric: object) -> None:
    with pytest.raises(UserError, match=r"3 frames of 48x40 and 2 frames of 48x40"):
        metric(noise(0), noise(0, frames=2))  # type: ignore[operator]
    with pytest.raises(ValueError, match="uint8"):
        metric(noise(0).astype(float), noise(0))  # type: ignore[operator]


def test_tiny_frames_are_refused_in_words() -> None:
    with pytest.raises(UserError, match="7x7"):
        ssim(noise(0, height=6), noise(1, height=6))


class FakeMetric:
    """Mean absolute difference, with torchmetrics' interface."""

    def __init__(self, net_type: str, normalize: bool) -> None:
        assert (net_type, normalize) == ("alex", True)
        self.values: list[float] = []

    def update(self, a: torch.Tensor, b: torch.Tensor) -> None:
        assert a.shape == b.shape == (1, 3, 40, 48)
        self.values.append(float((a - b).abs().mean()))

    def compute(self) -> torch.Tensor:
        return torch.tensor(self.values).mean()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """torchmetrics and torchvision as if installed; returns where the weights would lie."""
    modules = {name: ModuleType(name) for name in MODULES}
    modules["torchmetrics.image.lpip"].LearnedPerceptualImagePatchSimilarity = FakeMetric  # type: ignore[attr-defined]
    weights = SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(url="https://example.org/models/alexnet-0.pth"))
    modules["torchvision.models"].AlexNet_Weights = weights  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path / "checkpoints" / "alexnet-0.pth"


def test_lpips_without_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    assert lpips(noise(0), noise(1)) is None
    assert "torchmetrics" in (lpips_unavailable_reason() or "")
    result = compare(noise(0), noise(0))
    assert result == {"psnr": math.inf, "ssim": 1, "lpips": None, "lpips_note": lpips_unavailable_reason()}


def test_lpips_never_downloads(installed: Path) -> None:
    reason = lpips_unavailable_reason()
    assert reason is not None
    assert str(installed) in reason
    assert lpips(noise(0), noise(1)) is None


def test_lpips_with_cached_weights(installed: Path) -> None:
    installed.parent.mkdir()
    installed.touch()
    a = noise(0) // 2
    result = compare(a, a + np.uint8(51))
    assert result["lpips"] == pytest.approx(0.2)
    assert result["lpips_note"] is None
    with pytest.raises(UserError, match="31 pixels"):
        lpips(noise(0, height=30), noise(1, height=30))


def test_frames_come_from_a_file_or_a_run_folder(tmp_path: Path) -> None:
    frames = np.full((3, 32, 48, 3), 90, np.uint8)
    iio.imwrite(tmp_path / "video.mp4", frames, plugin="FFMPEG", is_batch=True, fps=8, macro_block_size=1)
    for path in (tmp_path, tmp_path / "video.mp4"):
        loaded = load_frames(path)
        assert loaded.dtype == np.uint8
        assert loaded.shape == frames.shape
        assert psnr(frames, loaded) > 35


def test_what_is_no_video_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"video\.mp4 does not exist"):
        load_frames(tmp_path)
    with pytest.raises(UserError, match=r"nowhere\.mp4 does not exist"):
        load_frames(tmp_path / "nowhere.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(UserError, match="cannot be read"):
        load_frames(tmp_path / "text.mp4")


def flat_flip(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
    """FLIP of two flat pictures by the paper (section 4): filters leave them alone and no feature differs, so
    only the colours' distance is left, HyAB in Hunt-adjusted CIELab, remapped and to the power 0.7."""
    rows = "0.4124564 0.3575761 0.1804375; 0.2126729 0.7151522 0.0721750; 0.0193339 0.1191920 0.9503041"
    to_xyz = np.array([[float(each) for each in row.split()] for row in rows.split(";")])
    white = to_xyz @ np.ones(3)

    def lab(colour: np.ndarray) -> np.ndarray:
        ratio = to_xyz @ colour / white
        f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
        lightness = 116 * f[1] - 16
        hunt = 0.01 * lightness * np.array([500 * (f[0] - f[1]), 200 * (f[1] - f[2])])
        return np.array([lightness, *hunt])

    def linear(colour: tuple[int, int, int]) -> np.ndarray:
        unit = np.array(colour) / 255
        return np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)

    def hyab(x: np.ndarray, y: np.ndarray) -> float:
        return float(abs(x[0] - y[0]) + np.hypot(*(x - y)[1:]))

    exponent, cut, height = 0.7, 0.4, 0.95  # q_c, p_c and p_t
    largest = hyab(lab(np.array([0.0, 1, 0])), lab(np.array([0.0, 0, 1]))) ** exponent
    distance = hyab(lab(linear(a)), lab(linear(b))) ** exponent
    if distance < cut * largest:
        return height / (cut * largest) * distance
    return height + (distance - cut * largest) / (largest - cut * largest) * (1 - height)


@pytest.mark.parametrize(
    ("a", "b"), [((0, 0, 0), (255, 255, 255)), ((200, 30, 40), (190, 60, 40)), ((90, 90, 90), (92, 92, 92))]
)
def test_flip_of_flat_frames(a: tuple[int, int, int], b: tuple[int, int, int]) -> None:
    pictures = [np.full((1, 24, 24, 3), colour, np.uint8) for colour in (a, b)]
    assert flip(*pictures) == pytest.approx(flat_flip(a, b), rel=2e-3)


def test_flip_is_the_mean_over_frames() -> None:
    a, b = noise(0), noise(1)
    assert flip(a, a) == 0
    frames = [flip(a[i : i + 1], b[i : i + 1]) for i in range(3)]
    assert flip(a, b) == pytest.approx(np.mean(frames))
    assert max(frames) > min(frames) > 0


def test_flip_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flip_evaluator", None)
    assert flip(noise(0), noise(1)) is None
    assert "flip-evaluator" in (flip_unavailable_reason() or "")


def test_flicker() -> None:
    """VBench's temporal_flickering, on whole frames in float64."""
    video = noise(0, frames=4)
    means = [np.abs(video[i].astype(float) - video[i + 1]).mean() for i in range(3)]
    assert flicker(video) == pytest.approx((255 - np.mean(means)) / 255, abs=1e-12)
    assert flicker(np.repeat(flat(7), 2, axis=0)) == 1
    assert flicker(np.concatenate([flat(0)[:1], flat(255)[:1]])) == 0
    assert flicker(noise(0, frames=1)) is None


def test_measures_of_what_is_too_small() -> None:
    found = measures(noise(0, height=6), noise(1, height=6))
    assert (found["ssim"], found["lpips"]) == (None, None)
    assert found["psnr"] == psnr(noise(0, height=6), noise(1, height=6))


def test_measures() -> None:
    a, b = noise(0), noise(1)
    expected = {"psnr": psnr(a, b), "ssim": ssim(a, b), "flip": flip(a, b), "lpips": lpips(a, b)}
    assert measures(a, b) == {**expected, "flicker": flicker(b)}
