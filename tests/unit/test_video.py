from collections.abc import Iterator
from pathlib import Path

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import pytest

from jano_dist.errors import UserError
from jano_dist.video import BT709, CRF, read_video, write_video


def waves(frames: int, height: int = 48, width: int = 80) -> np.ndarray:
    """Smooth moving colours, uint8 [T, H, W, 3]."""
    t, y, x, c = np.ogrid[:frames, :height, :width, :3]
    return (127 + 100 * np.sin(x / 30 + y / 40 + t / 10 + 2 * c)).astype(np.uint8)


@pytest.mark.parametrize("count", [1, 2, 33])
@pytest.mark.parametrize("fps", [1, 16, 24])
def test_round_trip_keeps_count_size_and_content(tmp_path: Path, count: int, fps: int) -> None:
    frames = waves(count)
    write_video(tmp_path / "video.mp4", frames, fps)
    again = read_video(tmp_path / "video.mp4")
    assert again.dtype == np.uint8
    assert again.shape == frames.shape
    error = np.mean((frames.astype(float) - again) ** 2)
    assert 10 * np.log10(255**2 / error) > 35


def test_flat_colours_survive(tmp_path: Path) -> None:
    """A wrong colour matrix shifts saturated colours by 10 and more."""
    for colour in ([200, 40, 30], [20, 180, 60], [30, 60, 210]):
        frames = np.broadcast_to(np.array(colour, np.uint8), (3, 32, 32, 3))
        write_video(tmp_path / "flat.mp4", frames, 8)
        np.testing.assert_allclose(read_video(tmp_path / "flat.mp4")[1, 16, 16], colour, atol=3)


def test_browsers_can_play_it(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    write_video(path, waves(5), 16)
    meta = iio.immeta(path, plugin="FFMPEG")
    assert meta["codec"] == "h264"
    assert meta["pix_fmt"].startswith("yuv420p")
    assert "bt709" in meta["pix_fmt"]
    assert meta["fps"] == 16
    content = path.read_bytes()
    assert 0 < content.find(b"moov") < content.find(b"mdat")  # the index comes first: faststart


@pytest.mark.parametrize(
    "shape", [(2, 31, 32, 3), (2, 32, 31, 3), (0, 32, 32, 3), (2, 32, 32), (2, 32, 32, 4)]
)
def test_refuses_shapes_it_would_have_to_change(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be"):
        write_video(tmp_path / "video.mp4", np.zeros(shape, np.uint8), 16)
    assert not list(tmp_path.iterdir())


def test_refuses_floats_and_no_fps(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="uint8"):
        write_video(tmp_path / "video.mp4", np.zeros((2, 32, 32, 3), np.float32), 16)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fps"):
        write_video(tmp_path / "video.mp4", waves(2), 0)


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), OSError("disk full")])
def test_interrupted_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: BaseException
) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(b"an older video")

    def half(target: Path, *args: object, **kwargs: object) -> Iterator[None]:
        target.write_bytes(b"half a video")
        yield
        raise problem

    monkeypatch.setattr(imageio_ffmpeg, "write_frames", half)
    with pytest.raises(type(problem)):
        write_video(path, waves(2), 16)
    assert [file.name for file in tmp_path.iterdir()] == ["video.mp4"]
    assert path.read_bytes() == b"an older video"


def test_the_file_of_a_batch(tmp_path: Path) -> None:
    """Frame by frame the encoder makes the same file, also of frames that do not lie in one piece."""
    frames = waves(9)
    parameters = ["-crf", CRF, "-movflags", "+faststart", "-vf", BT709]
    iio.imwrite(
        tmp_path / "batch.mp4", frames, plugin="FFMPEG", is_batch=True, fps=16, codec="libx264",
        quality=None, pixelformat="yuv420p", macro_block_size=1, output_params=parameters,
    )  # fmt: skip
    write_video(tmp_path / "frames.mp4", np.asfortranarray(frames), 16)
    assert (tmp_path / "frames.mp4").read_bytes() == (tmp_path / "batch.mp4").read_bytes()


def test_an_encoder_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/bin/false")
    with pytest.raises(OSError):  # noqa: PT011 - what it says is the operating system's
        write_video(tmp_path / "video.mp4", waves(33, 480, 832), 16)
    assert not list(tmp_path.iterdir())


def test_lost_frames_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imageio_ffmpeg, "count_frames_and_secs", lambda path: (4, 0.25))
    with pytest.raises(OSError, match="4 of 5 frames"):
        write_video(tmp_path / "video.mp4", waves(5), 16)
    assert not list(tmp_path.iterdir())


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    whole = tmp_path / "whole.mp4"
    write_video(whole, waves(5), 16)
    for name, content in {"text": b"no video" * 99, "empty": b"", "cut": whole.read_bytes()[:600]}.items():
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.mp4 cannot be read as a video"):
            read_video(path)
    with pytest.raises(UserError, match="not a file"):
        read_video(tmp_path / "missing.mp4")
    with pytest.raises(UserError, match="not a file"):
        read_video(tmp_path)
