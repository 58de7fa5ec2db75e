"""`--image`: the size it gives, what is made of it, and what is refused."""

import json

import pytest
from PIL import Image

from tests.parity.video_pipelines import TEXT_TOKENS, i2v_pipeline, picture

MORE = ("--frames", 5, "--steps", 4, "--policy", "full", "--set", "model.dtype=float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "i2v"
    i2v_pipeline(clip=False).save_pretrained(path)
    return path


@pytest.fixture
def i2v(cli, folder, tmp_path):
    def run(*options, config="wan-tiny"):
        area = ("--config", config, "--set", f"model.max_sequence_length={TEXT_TOKENS}")
        return cli("generate", "a ball", "--out", tmp_path / "run", "--model", folder, *area, *MORE, *options)

    return run


def test_the_picture_gives_the_size(i2v, tmp_path):
    """Its aspect ratio, and the config's area: 128x128 pixels."""
    result = i2v("--image", picture(tmp_path / "wide.png", 0, width=200, height=50))
    assert (result.code, result.err) == (0, "")
    video = json.loads((tmp_path / "run" / "run.json").read_text())["config"]["video"]
    assert (video["height"], video["width"]) == (64, 256)


def test_a_size_that_is_asked_for(i2v, tmp_path):
    result = i2v("--image", picture(tmp_path / "wide.png", 0), "--height", 32, "--width", 48)
    assert (result.code, result.err) == (0, "")
    video = json.loads((tmp_path / "run" / "run.json").read_text())["config"]["video"]
    assert (video["height"], video["width"]) == (32, 48)


def unreadable(path):
    path.write_text("no image")
    return path


BAD = {
    "none": (lambda path: None, "makes videos of an image: give one with --image FILE"),
    "not there": (lambda path: path, "there is no image"),
    "unreadable": (unreadable, "cannot be read as an image: give one that is complete"),
    "tiny": (lambda path: picture(path, 0, width=9, height=40), "is 9x40 pixels: give an image of 16 pixels"),
    "long": (lambda path: picture(path, 0, width=900, height=40), "at most 8 times as long as wide"),
}


@pytest.mark.parametrize(("make", "words"), BAD.values(), ids=BAD)
def test_refused(i2v, tmp_path, make, words):
    image = make(tmp_path / "image.png")
    for check in ((), ("--check",)):
        result = i2v(*(("--image", image) if image else ()), *check)
        assert result.code == 2
        assert words in result.err
        assert len(result.err.splitlines()) == 1
        assert not (tmp_path / "run").exists()


def test_a_picture_for_a_text_model(cli, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    result = cli("generate", "a ball", "--out", tmp_path / "run", "--image", tmp_path / "image.png")
    assert result.code == 2
    assert "makes videos of text alone: leave --image" in result.err
