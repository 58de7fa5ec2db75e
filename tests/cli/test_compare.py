"""`jano-dist compare` of images, folders of images, latents and runs of one frame, in every pairing."""

import json
import math

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from jano_dist import cli as command_line
from tests.cli.sentence import BALL, assert_sentence

SIZE = (48, 64)  # height, width


def picture(seed, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def decibels(a, b):
    return 10 * math.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


@pytest.fixture
def folders(tmp_path):
    """Two folders of images named alike, in other formats, and what is in them."""
    first, second = tmp_path / "first", tmp_path / "second"
    frames = {name: (picture(2 * i), picture(2 * i + 1)) for i, name in enumerate(("ball", "box"))}
    for folder, index, suffix in ((first, 0, ".png"), (second, 1, ".webp")):
        folder.mkdir()
        for name, pair in frames.items():
            Image.fromarray(pair[index]).save(folder / f"{name}{suffix}", lossless=True)
    return first, second, frames


@pytest.fixture(scope="module")
def runs(tmp_path_factory, small):
    """Two runs of one frame; the second one without latents."""
    folder = tmp_path_factory.mktemp("runs")
    for name, options in (("full", ["--policy", "full", "--save-latents"]), ("jano", [])):
        arguments = ["generate", BALL, "--out", str(folder / name), "--config", str(small), "--frames", "1"]
        assert command_line.run([*arguments, *options]) == 0
    return folder / "full", folder / "jano"


class TestOneFrame:
    def test_a_run_of_one_frame_leaves_an_image(self, runs):
        full, jano = runs
        assert {file.name for file in jano.iterdir()} == {
            "image.png", "complexity.png", "timeline.png", "run.json"
        }  # fmt: skip
        with Image.open(full / "image.png") as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 64))

    def test_a_run_of_a_video_takes_its_place_whole(self, runs, small, tmp_path, cli):
        """And the other way: no result of the earlier run is left beside the new one's."""
        out = tmp_path / "run"
        call = ["generate", BALL, "--out", out, "--config", small, "--steps", 12]
        for frames, name, other in ((1, "image.png", "video.mp4"), (5, "video.mp4", "image.png")) * 2:
            made = cli(*call, "--frames", frames)
            assert str(out / name) in made.out
            assert (out / name).exists()
            assert not (out / other).exists()

    def test_a_batch_names_the_images(self, small, tmp_path, cli):
        (tmp_path / "prompts.txt").write_text(BALL)
        made = cli(
            "batch", tmp_path / "prompts.txt", "--out", tmp_path / "out", "--config", small, "--frames", 1
        )
        assert made.code == 0, made.err
        (row,) = map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines())
        assert row["path"].endswith("image.png")
        with Image.open(row["path"]) as image:
            assert image.size == (64, 64)

    def test_run_against_image(self, runs, cli):
        full, jano = runs
        by_folder, by_file = (
            cli("compare", full, jano, "--json"),
            cli("compare", full, jano / "image.png", "--json"),
        )
        assert by_folder.out == by_file.out
        found = json.loads(by_folder.out)
        a, b = (np.asarray(Image.open(run / "image.png")) for run in runs)
        assert found["psnr"] == pytest.approx(decibels(a, b))
        assert "Encoding" not in cli("compare", full, jano).out


class TestFolders:
    def test_image_by_image(self, folders, cli):
        first, second, frames = folders
        found = json.loads(cli("compare", first, second, "--json").out)
        expected = {name: decibels(*pair) for name, pair in frames.items()}
        assert {name: row["psnr"] for name, row in found["images"].items()} == pytest.approx(expected)
        assert found["mean"]["psnr"] == pytest.approx(np.mean(list(expected.values())))
        assert found["identical"] is False
        table = cli("compare", first, second).out
        assert all(word in table for word in ("ball", "box", "mean", " dB"))

    def test_one_of_them_is_the_same(self, folders, cli):
        first, second, frames = folders
        (second / "box.webp").unlink()
        Image.fromarray(frames["box"][0]).save(second / "box.png")
        found = json.loads(cli("compare", first, second, "--json").out)
        assert found["images"]["box"]["identical"] is True
        assert found["images"]["box"]["psnr"] is None
        assert found["mean"]["psnr"] == pytest.approx(decibels(*frames["ball"]))
        assert "identical" in cli("compare", first, second).out

    def test_against_a_video_of_as_many_frames(self, folders, cli, tmp_path):
        """In the order of their names; a video is lossy, so the frames are flat."""
        first, _, _ = folders
        for name, value in (("ball", 40), ("box", 200)):
            Image.fromarray(np.full((*SIZE, 3), value, np.uint8)).save(first / f"{name}.png")
        video = np.stack([np.full((*SIZE, 3), value, np.uint8) for value in (40, 200)])
        iio.imwrite(tmp_path / "v.mp4", video, plugin="FFMPEG", fps=8)
        assert json.loads(cli("compare", first, tmp_path / "v.mp4", "--json").out)["psnr"] > 40
        iio.imwrite(tmp_path / "v.mp4", video[::-1], plugin="FFMPEG", fps=8)
        assert json.loads(cli("compare", first, tmp_path / "v.mp4", "--json").out)["psnr"] < 5


class TestLatents:
    def test_measures(self, cli, tmp_path):
        """By their formulas, in numpy."""
        generator = np.random.default_rng(0)
        a, b = generator.normal(size=(2, 4, 3, 6, 8))
        for name, value in (("a", a), ("b", b)):
            save_file({"latents": torch.from_numpy(value)}, tmp_path / f"{name}.safetensors")
        found = json.loads(
            cli("compare", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--json").out
        )
        error = a - b
        expected = {
            "max_abs": np.abs(error).max(),
            "relative_l2": math.sqrt((error**2).sum() / (a**2).sum()),
            "psnr": 10 * math.log10((a.max() - a.min()) ** 2 / (error**2).mean()),
            "cosine": (a * b).sum() / math.sqrt((a**2).sum() * (b**2).sum()),
        }
        assert found == {**{key: pytest.approx(value) for key, value in expected.items()}, "identical": False}

    def test_itself_and_of_zeros(self, cli, tmp_path):
        save_file({"latents": torch.zeros(2, 3)}, tmp_path / "zeros.safetensors")
        save_file({"latents": torch.ones(2, 3).bfloat16()}, tmp_path / "ones.safetensors")
        same = json.loads(cli("compare", *[tmp_path / "zeros.safetensors"] * 2, "--json").out)
        assert same == {
            "max_abs": 0, "relative_l2": None, "psnr": None, "cosine": None, "identical": True
        }  # fmt: skip
        other = cli("compare", tmp_path / "zeros.safetensors", tmp_path / "ones.safetensors")
        assert (other.code, other.err) == (0, "")
        assert "identical" not in other.out

    def test_those_of_a_run(self, runs, cli):
        full, _ = runs
        found = json.loads(cli("compare", full, full / "latents.safetensors", "--json").out)
        assert (found["identical"], found["max_abs"]) == (True, 0)


# What is compared (names of the files below) -> words of the sentence.
SENSELESS = {
    "latents_and_image": ("latents.safetensors", "one.png", ["one.png has no latents", "--save-latents"]),
    "latents_and_run_without": ("latents.safetensors", "jano", ["jano has no latents", "--save-latents"]),
    "other_shapes": ("latents.safetensors", "small.safetensors", ["[2, 3] and [6]", "of the same size"]),
    "no_latents_inside": ("other.safetensors", "latents.safetensors", ["no tensor 'latents'"]),
    "not_finite": ("nan.safetensors", "latents.safetensors", ["nan.safetensors are not all finite"]),
    "no_safetensors": ("torn.safetensors", "latents.safetensors", ["cannot be read as safetensors"]),
    "missing": ("latents.safetensors", "no.safetensors", ["no.safetensors does not exist", "give a video"]),
    "other_names": ("images", "others", ["others has no image named a", "the same names"]),
    "several_sizes": ("mixed", "one.png", ["images of several sizes (a and b)", "folder of images"]),
    "another_number": ("images", "one.png", ["2 frames of 64x48 and 1 frame of 64x48", "same size"]),
    "other_size": ("images", "mixed", ["image b: ", "1 frame of 64x48 and 1 frame of 32x32"]),
    "twice_the_same": ("twice", "images", ["several images named a", "keep one"]),
    "empty_folder": ("empty", "images", ["empty is neither", "(.png, .jpg, .jpeg, .webp)", "give one"]),
    "no_image": ("broken.png", "one.png", ["broken.png cannot be read as an image", "complete"]),
    "cut_off": ("cut.png", "one.png", ["cut.png cannot be read as an image", "complete"]),
    "run_without_result": ("lost", "one.png", ["video.mp4 does not exist", "finished run"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def material(tmp_path_factory, runs):
    folder = tmp_path_factory.mktemp("material")
    Image.fromarray(picture(0)).save(folder / "one.png")
    contents = {
        "images": {"a.png": SIZE, "b.png": SIZE},
        "others": {"b.png": SIZE, "c.png": SIZE},
        "mixed": {"a.png": SIZE, "b.png": (32, 32)},
        "twice": {"a.png": SIZE, "a.jpg": SIZE},
        "empty": {},
    }
    for name, files in contents.items():
        (folder / name).mkdir()
        for file, size in files.items():
            Image.fromarray(picture(1, size)).save(folder / name / file)
    latents = {"latents": torch.ones(2, 3)}
    save_file(latents, folder / "latents.safetensors")
    save_file({"latents": torch.ones(6)}, folder / "small.safetensors")
    save_file({"latents": torch.full((2, 3), math.nan)}, folder / "nan.safetensors")
    save_file({"others": torch.ones(6)}, folder / "other.safetensors")
    (folder / "torn.safetensors").write_bytes((folder / "latents.safetensors").read_bytes()[:-4])
    (folder / "broken.png").write_text("words")
    (folder / "cut.png").write_bytes((folder / "one.png").read_bytes()[:-2000])
    (folder / "jano").symlink_to(runs[1])
    (folder / "lost").mkdir()
    for name in ("run.json", "complexity.png"):
        (folder / "lost" / name).write_bytes((runs[1] / name).read_bytes())
    return folder


@pytest.mark.parametrize("case", SENSELESS)
def test_what_makes_no_sense(cli, material, case):
    a, b, words = SENSELESS[case]
    result = cli("compare", material / a, material / b, "--json")
    assert_sentence(result, *words)
    assert result.out == ""
