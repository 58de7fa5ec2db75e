"""The picture that a video begins with: what is read, what is refused, and the size that follows from it."""

from pathlib import Path

import numpy as np
import pytest
from diffusers.utils import load_image
from PIL import Image

from jano_dist import UserError, load_config
from jano_dist.cli.picture import picture_size, sized_by_image
from jano_dist.picture import open_picture


@pytest.fixture
def saved(tmp_path):
    def save(width, height, name="a.png", mode="RGB", **options):
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8)
        Image.fromarray(noise).convert(mode).save(tmp_path / name, **options)
        return str(tmp_path / name)

    return save


def test_read_as_diffusers_reads_it(saved):
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    paths = [saved(40, 20), saved(40, 20, "b.png", "RGBA"), saved(40, 20, "c.png", "L")]
    for path in (*paths, saved(40, 20, "d.jpg", exif=turned)):
        assert np.array_equal(open_picture(path), load_image(path))
        assert picture_size(path) == load_image(path).size
    assert picture_size(path) == (20, 40)


# Height and width by the formula of diffusers' example, rounded down to whole tokens: the square root of the
# area (480 x 832, 704 x 1280) times or by the ratio; the one that is not given by the one that is.
@pytest.mark.parametrize(
    ("name", "picture", "given", "size"),
    [
        ("wan2.1-i2v-14b-480p", (832, 480), {}, (480, 832)),
        ("wan2.1-i2v-14b-480p", (512, 512), {}, (624, 624)),  # 631.9
        ("wan2.1-i2v-14b-480p", (300, 900), {}, (1088, 352)),  # 1094.6, 364.9
        ("wan2.1-i2v-14b-480p", (300, 900), {"video.height": 480}, (480, 160)),
        ("wan2.1-i2v-14b-480p", (300, 900), {"video.width": 320}, (960, 320)),
        ("wan2.1-i2v-14b-480p", (300, 400), {"video.height": 480}, (480, 352)),  # 360
        ("wan2.1-i2v-14b-480p", (400, 100), {"video.width": 48}, (16, 48)),  # 12: one token at least
        ("wan2.1-i2v-14b-480p", (300, 900), {"video.width": 320, "video.height": 64}, (64, 320)),
        ("wan2.2-ti2v-5b-720p", (300, 400), {}, (1088, 800)),  # 1096.1, 822.1
        ("wan2.2-ti2v-5b-720p", (300, 400), {"video.height": 704}, (704, 512)),  # 528
        ("wan2.1-14b-480p", (300, 400), {"video.height": 480}, (480, 832)),  # from text; refused later
    ],
)
def test_size(saved, name, picture, given, size):
    settings = load_config(name, overrides={"sampling.image": saved(*picture), **given})
    video = sized_by_image(settings, given).video
    assert (video.height, video.width) == size


def test_no_picture_no_change(saved):
    settings = load_config("wan2.1-i2v-14b-480p")
    assert sized_by_image(settings, ()) is settings


def test_a_model_that_is_not_here(saved):
    """Nothing says what its tokens are; without both sizes the picture would be stretched."""
    settings = load_config(
        "wan2.1-i2v-14b-480p", overrides={"model.name": "some/model", "sampling.image": saved(64, 64)}
    )
    assert sized_by_image(settings, {"video.height", "video.width"}) is settings
    for asked in ((), ("video.height",)):
        with pytest.raises(UserError, match=r"some/model .* give --height and --width"):
            sized_by_image(settings, asked)


@pytest.mark.parametrize("read", [picture_size, open_picture])
def test_what_is_no_picture(tmp_path, saved, read):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "half.png").write_bytes(Path(saved(64, 64)).read_bytes()[:-2000])
    cases = dict.fromkeys(("text.png", "empty.png", "half.png"), "cannot be read as an image")
    cases |= dict.fromkeys(("none.png", "."), "there is no image")
    for name, words in cases.items():
        with pytest.raises(UserError, match=words):
            read(str(tmp_path / name))


@pytest.mark.parametrize("size", [(15, 40), (40, 15), (1, 1), (129, 16), (16, 129)])
def test_tiny_and_long_ones(saved, size):
    with pytest.raises(UserError, match=f"is {size[0]}x{size[1]} pixels: give an image of 16 pixels a side"):
        picture_size(saved(*size))


def test_just_large_enough(saved):
    assert picture_size(saved(128, 16)) == (128, 16)
