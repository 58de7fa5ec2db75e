from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jano_dist.report import OVERLAY_ALPHA, complexity_picture, covered_frames, timeline_picture, tint

BLUE, YELLOW, VERMILLION = (0x00, 0x72, 0xB2), (0xF0, 0xE4, 0x42), (0xD5, 0x5E, 0x00)
DARK = (0x40, 0x40, 0x40)


def grey(frames: int, height: int = 64, width: int = 96) -> np.ndarray:
    return np.full((frames, height, width, 3), 128, np.uint8)


def over_grey(colour: tuple[int, ...]) -> np.ndarray:
    return np.round((1 - OVERLAY_ALPHA) * 128 + OVERLAY_ALPHA * np.array(colour))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def count(picture: np.ndarray, colour: Any) -> int:
    return int((np.abs(picture - np.array(colour)).max(axis=-1) <= 2).sum())


@pytest.mark.parametrize(("latent", "frames"), [(21, 81), (9, 33), (2, 5), (1, 1), (1, 9), (4, 1)])
def test_covered_frames_is_the_causal_map(latent: int, frames: int) -> None:
    rate = (frames - 1) // max(latent - 1, 1)
    for j in range(latent):
        expected = (0, 0) if j == 0 or frames == 1 else (1 + (j - 1) * rate, j * rate)
        assert covered_frames(j, latent, frames) == expected


def test_covered_frames_stay_inside_when_the_rate_is_no_whole_number() -> None:
    for frames in range(1, 40):
        spans = [covered_frames(j, 9, frames) for j in range(9)]
        assert all(0 <= first <= last < frames for first, last in spans)
        assert spans[-1][1] == frames - 1


def test_tint_colours_each_token() -> None:
    levels = np.array([[1, 2], [3, 1]], np.uint8)
    picture = tint(grey(1, 32, 48)[0], levels)
    assert picture.shape == (32, 48, 3)
    for (y, x), colour in {(0, 0): BLUE, (0, 1): YELLOW, (1, 0): VERMILLION, (1, 1): BLUE}.items():
        token = picture[16 * y : 16 * y + 16, 24 * x : 24 * x + 24]
        np.testing.assert_array_equal(token, np.broadcast_to(over_grey(colour), token.shape))


def test_static_video_is_blue_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "map.png"
    complexity_picture(path, grey(33), np.ones((9, 4, 6), np.uint8), {"static": 1.0})
    picture = pixels(path)
    height, width, _ = picture.shape
    assert 1000 < width < 3000
    assert 300 < height < width
    upper, lower = picture[: height // 2], picture[height // 2 :]
    assert count(upper, (128, 128, 128)) > 0.7 * upper[..., 0].size
    assert count(lower, over_grey(BLUE)) > 0.65 * lower[..., 0].size
    assert count(picture, over_grey(VERMILLION)) == count(picture, over_grey(YELLOW)) == 0


def test_levels_are_drawn_where_they_are(tmp_path: Path) -> None:
    levels = np.ones((9, 4, 6), np.uint8)
    levels[:, :, 3:] = 3
    path = tmp_path / "map.png"
    complexity_picture(path, grey(33), levels, {"static": 0.5, "active": 0.5})
    picture = pixels(path)
    static, active = count(picture, over_grey(BLUE)), count(picture, over_grey(VERMILLION))
    assert static == pytest.approx(active, rel=0.03)
    ys, xs = np.nonzero(np.abs(picture - over_grey(BLUE)).max(-1) <= 2)
    leftmost = xs.min()
    row = picture[int(np.median(ys))]
    first_active = np.nonzero(np.abs(row - over_grey(VERMILLION)).max(-1) <= 2)[0].min()
    border = row[leftmost:first_active]
    assert count(border, (255, 255, 255)) >= 1  # the white line between two levels


def test_the_frame_shown_is_inside_its_latent_frame(tmp_path: Path) -> None:
    """Two latent frames over five: the first column shows frame 0, the second one of 1 to 4."""
    frames = grey(5)
    frames[0] = 30
    frames[1:] = 220
    path = tmp_path / "map.png"
    complexity_picture(path, frames, np.ones((2, 4, 6), np.uint8), {})
    picture = pixels(path)
    dark, bright = count(picture, (30, 30, 30)), count(picture, (220, 220, 220))
    assert dark == pytest.approx(bright, rel=0.03)


@pytest.mark.parametrize(
    ("frames", "levels", "size"),
    [(1, 1, (64, 96)), (5, 1, (64, 96)), (1, 3, (64, 96)), (5, 2, (96, 64)), (81, 21, (480, 832))],
)
def test_every_size_is_drawn(tmp_path: Path, frames: int, levels: int, size: tuple[int, int]) -> None:
    path = tmp_path / "map.png"
    tokens = np.full((levels, size[0] // 16, size[1] // 16), 2, np.uint8)
    complexity_picture(path, grey(frames, *size), tokens, {"moderate": 1.0})
    assert count(pixels(path), over_grey(YELLOW)) > 10_000


def test_bad_maps_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "map.png"
    with pytest.raises(ValueError, match=r"found \[0, 4\]"):
        complexity_picture(path, grey(1), np.array([[[0, 1, 4]]], np.uint8), {})
    with pytest.raises(ValueError, match="levels must be"):
        complexity_picture(path, grey(1), np.ones((4, 6), np.uint8), {})
    with pytest.raises(ValueError, match="frames must be"):
        complexity_picture(path, grey(1)[0], np.ones((1, 4, 6), np.uint8), {})
    assert not path.exists()


def step(
    index: int, kind: str, tokens: int, seconds: float = 1.0, comm_bytes: int = 0, comm_seconds: float = 0.0
) -> dict[str, Any]:
    return {
        "index": index,
        "kind": kind,
        "tokens": tokens,
        "seconds": seconds,
        "comm_bytes": comm_bytes,
        "comm_seconds": comm_seconds,
    }


def test_bars_are_as_high_as_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "steps.png"
    timeline_picture(path, [step(1, "full", 1000, 2.0, 10**9), step(2, "active", 250, 1.0)])
    picture = pixels(path)
    height = len(picture)
    tokens, seconds = (
        picture[int(0.05 * height) : int(0.43 * height)],
        picture[int(0.45 * height) : int(0.83 * height)],
    )
    assert count(tokens, DARK) / count(tokens, VERMILLION) == pytest.approx(4, rel=0.05)
    assert count(seconds, DARK) / count(seconds, VERMILLION) == pytest.approx(2, rel=0.05)


def test_communication_is_white_on_top_of_compute(tmp_path: Path) -> None:
    path = tmp_path / "steps.png"
    timeline_picture(path, [step(1, "full", 100, 2.0, 8, comm_seconds=1.5), step(2, "active", 100, 2.0)])
    picture = pixels(path)
    seconds = picture[int(0.45 * len(picture)) : int(0.83 * len(picture))]
    assert count(seconds, DARK) / count(seconds, VERMILLION) == pytest.approx(0.25, rel=0.1)


def test_only_kinds_that_occur_are_in_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "steps.png"
    timeline_picture(path, [step(i, kind, 100) for i, kind in enumerate(("full", "refresh", "moderate"))])
    picture = pixels(path)
    assert min(count(picture, colour) for colour in (DARK, BLUE, YELLOW)) > 1000
    assert count(picture, VERMILLION) == 0


@pytest.mark.parametrize("kinds", [["full"], ["skip"], ["full", "skip"], ["active"] * 1000])
def test_every_length_is_drawn(tmp_path: Path, kinds: list[str]) -> None:
    path = tmp_path / "steps.png"
    steps = [
        step(i, kind, 0 if kind == "skip" else 100, 0.0 if kind == "skip" else 1.0)
        for i, kind in enumerate(kinds)
    ]
    timeline_picture(path, steps)
    height, width, _ = pixels(path).shape
    assert (width, height) == (1260, 630)


def test_bad_timelines_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one step"):
        timeline_picture(tmp_path / "steps.png", [])
    with pytest.raises(ValueError, match=r"unknown step kinds \['dance'\]"):
        timeline_picture(tmp_path / "steps.png", [step(1, "dance", 1)])
