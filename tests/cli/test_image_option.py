"""`--image`: the size it gives, what is made of it, and what is refused."""

import json
import shutil

import pytest
from PIL import Image

from jano_dist import UserError
from jano_dist.models import read_geometry
from tests.cli.sentence import assert_sentence
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


@pytest.mark.parametrize(
    ("options", "size"),
    [(("--height", 32), (32, 128)), (("--width", 64), (16, 64)), (("--set", "video.width=64"), (16, 64))],
)
def test_one_side_of_it(i2v, tmp_path, options, size):
    """The other one follows from the picture."""
    result = i2v("--image", picture(tmp_path / "wide.png", 0, width=200, height=50), *options)
    assert (result.code, result.err) == (0, "")
    video = json.loads((tmp_path / "run" / "run.json").read_text())["config"]["video"]
    assert (video["height"], video["width"]) == size


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


def test_a_model_that_is_not_here(cli, tmp_path):
    image = picture(tmp_path / "image.png", 0)
    options = ("--config", "wan-tiny", "--model", "some/model", "--image", image)
    result = cli("generate", "a ball", "--out", tmp_path / "run", *options)
    assert_sentence(result, "some/model", "not known before it is fetched: give --height and --width")


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("transformer", {"in_channels": 9}, "takes 5 channels of a picture, which has 8: fetch"),
        ("transformer", {"image_dim": 20, "added_kv_proj_dim": 72}, "of 20 from an image encoder, .* none:"),
        (
            "transformer",
            {"pos_embed_seq_len": 10},
            "between a first and a last frame, .* not supported: give",
        ),
    ],
)
def test_configs_that_do_not_go_together(folder, tmp_path, file, changes, words):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    path = copy / file / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError, match=words):
        read_geometry(str(copy))


def test_a_picture_for_a_text_model(cli, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    result = cli("generate", "a ball", "--out", tmp_path / "run", "--image", tmp_path / "image.png")
    assert result.code == 2
    assert "makes videos of text alone: leave --image" in result.err
