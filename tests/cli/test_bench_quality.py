"""`jano-dist bench quality`: what it writes, how it goes on, what it refuses."""

import json
from html.parser import HTMLParser
from statistics import mean, median

import numpy as np
import pytest
from PIL import Image

from jano_dist import Engine, load_config
from jano_dist.media import load_frames
from jano_dist.quality import flicker, psnr, ssim
from tests.cli.sentence import assert_sentence

PROMPTS = ("a red ball moves left over a navy striped background", "a blue box moves up")
CASES = """\
slow: {policy.static_threshold: 0.1, policy.moderate_threshold: 0.3}
random: {policy.static_threshold: 0.1, policy.moderate_threshold: 0.3, rearrange: random}
few steps: {like: slow}
forecast <b>: {policy.name: forecast, policy.warmup: 4, policy.tau: 5.0}
"""
NAMES = ["slow", "random", "few steps", "forecast <b>"]


@pytest.fixture(scope="module")
def asked(small, tmp_path_factory):
    """The command line of a small comparison, without --out."""
    folder = tmp_path_factory.mktemp("asked")
    (folder / "cases.yaml").write_text(CASES)
    (folder / "prompts.txt").write_text("".join(f"{prompt}\n\n" for prompt in PROMPTS))
    options = ["--prompts", folder / "prompts.txt", "--cases", folder / "cases.yaml"]
    return ["bench", "quality", "--config", small, *options]


@pytest.fixture(scope="module")
def made(asked, tmp_path_factory):
    """The folder that it leaves, and what it held."""
    from jano_dist import cli

    out = tmp_path_factory.mktemp("made") / "out"
    assert cli.run([str(argument) for argument in [*asked, "--out", out]]) == 0
    return out, json.loads((out / "quality.json").read_text())


class Page(HTMLParser):
    """What a page shows: its words, and the files it names."""

    def __init__(self, text):
        super().__init__()
        self.words, self.files = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        names = ("src", "data-src", "data-map", "href")
        self.files += [value for name, value in attributes if name in names and value]

    def handle_data(self, data):
        self.words += [data.strip()] if data.strip() else []


class TestFigures:
    def test_a_row_is_what_plain_engines_make(self, made, small):
        _, record = made
        (row,) = [r for r in record["rows"] if (r["case"], r["prompt"]) == ("slow", PROMPTS[0])]
        full = Engine(load_config(small, policy="full")).generate(PROMPTS[0], seed=0)
        slow = Engine(load_config(small, preset="conservative")).generate(PROMPTS[0], seed=0)
        quality = row["quality"]
        assert quality["psnr"] == psnr(full.frames, slow.frames)
        assert quality["ssim"] == ssim(full.frames, slow.frames)
        assert quality["flicker"] == flicker(slow.frames)
        assert row["work"] == slow.record["flops"]["done"] / full.record["flops"]["done"]

    def test_fewer_steps_have_the_work_of_their_case(self, made):
        _, record = made
        for prompt in PROMPTS:
            slow, few = (
                next(r for r in record["rows"] if (r["case"], r["prompt"]) == (name, prompt))
                for name in ("slow", "few steps")
            )
            assert len(few["kinds"]) == round(12 * slow["work"])
            assert few["config"]["sampling"]["steps"] == len(few["kinds"])
            assert few["config"]["policy"] == {"name": "full"}
            assert set(few["kinds"]) == {"full"}

    def test_mean_median_and_worst(self, made):
        _, record = made
        assert [case["name"] for case in record["cases"]] == NAMES
        for case in record["cases"]:
            rows = [row for row in record["rows"] if row["case"] == case["name"]]
            fast = [row["full_seconds"]["denoise"] / row["seconds"]["denoise"] for row in rows]
            found = {"speedup": fast, "work": [row["work"] for row in rows]}
            found["speedup_flops"] = [1 / row["work"] for row in rows]
            for name in ("psnr", "ssim", "flip"):
                found[name] = [row["quality"][name] for row in rows]
            worst = {"work": max, "flip": max}
            for name, values in found.items():
                expected = {"mean": mean(values), "median": median(values), "videos": 2}
                expected["worst"] = worst.get(name, min)(values)
                assert case[name] == pytest.approx(expected), name
            lowest = min(rows, key=lambda row: row["quality"]["psnr"])
            assert case["worst_video"] == {"prompt": lowest["prompt"], "seed": 0}

    def test_it_says_how_it_came_to_be(self, made):
        _, record = made
        assert record["figures"] == "measured"
        (ran,) = record["ran"]
        assert {"command", "began", "versions", "device", "cpu", "cores", "ranks", "threads"} <= set(ran)
        assert ran["command"].startswith("jano-dist bench quality --config")
        assert (ran["ranks"], ran["figures"]) == (1, "measured")
        assert record["config"]["video"]["frames"] == 5


class TestPage:
    def test_lists_everything(self, made):
        out, record = made
        page = Page((out / "index.html").read_text())
        for word in (*PROMPTS, *NAMES):
            assert word in page.words, word
        videos = [file for file in page.files if file.startswith("videos/")]
        assert sorted(videos) == sorted(row["video"] for row in record["rows"])
        assert len(videos) == 2 * (1 + len(NAMES)) == len(set(videos))
        for file in page.files:
            assert (out / file).is_file(), file
        assert "pareto.png" in page.files
        text = (out / "index.html").read_text()
        assert "<!--" not in text
        assert "http" not in text  # nothing is fetched from elsewhere

    def test_videos_are_the_frames(self, made):
        out, record = made
        row = next(row for row in record["rows"] if row["case"] == "full")
        frames = load_frames(out / row["video"])
        assert frames.shape == (5, 64, 64, 3)

    def test_maps_show_the_levels(self, made, small):
        out, record = made
        row = next(row for row in record["rows"] if (row["case"], row["prompt"]) == ("slow", PROMPTS[1]))
        levels = (
            Engine(load_config(small, preset="conservative")).generate(PROMPTS[1], seed=0).levels
        )  # [2, 4, 4]
        picture = np.asarray(Image.open(out / row["map"]))
        assert picture.shape == (8, 4, 4)
        colours = {1: (0, 0x72, 0xB2), 2: (0xF0, 0xE4, 0x42), 3: (0xD5, 0x5E, 0)}
        expected = [[[colours[level] for level in line] for line in frame] for frame in levels.tolist()]
        assert np.array_equal(picture.reshape(2, 4, 4, 4)[..., :3], expected)
        assert {row["map"] for row in record["rows"] if row["case"] == "forecast <b>"} == {None}


class TestGoingOn:
    def test_nothing_is_made_twice(self, cli, asked, made, monkeypatch):
        out, _ = made
        before = (out / "rows.jsonl").read_bytes()
        monkeypatch.setattr(Engine, "__init__", lambda *args, **more: pytest.fail("a model is loaded"))
        (out / "index.html").unlink()
        ended = cli(*asked, "--out", out)
        assert ended.code == 0, ended.err
        assert (out / "rows.jsonl").read_bytes() == before
        assert (out / "index.html").exists()

    def test_what_is_lost_is_made_again(self, cli, asked, made, tmp_path):
        """A line that was cut off, and a video that is gone; the rest stays."""
        first, record = made
        out = tmp_path / "out"
        (out / "videos").mkdir(parents=True)
        lines = (first / "rows.jsonl").read_text().splitlines(keepends=True)
        (out / "rows.jsonl").write_text("".join(lines)[:-50])
        for row in record["rows"]:
            (out / row["video"]).write_bytes((first / row["video"]).read_bytes())
        gone = next(row for row in record["rows"] if row["case"] == "slow")
        (out / gone["video"]).unlink()
        assert cli(*asked, "--out", out).code == 0
        new = json.loads((out / "quality.json").read_text())
        assert [row["quality"] for row in new["rows"]] == [row["quality"] for row in record["rows"]]
        assert len((out / "rows.jsonl").read_text().splitlines()) == len(lines) + 3  # a session, and both
        assert len(new["ran"]) == 2
        assert not list((out / "full").iterdir())

    def test_another_case_is_added(self, cli, asked, made, tmp_path, small):
        out, _ = made
        lines = (out / "rows.jsonl").read_text().splitlines()
        more = tmp_path / "cases.yaml"
        more.write_text(
            "slow: {policy.static_threshold: 0.1, policy.moderate_threshold: 0.3}\nnew: {policy.warmup: 5}"
        )
        options = [*asked[:-1], more, "--out", out]
        assert cli(*options).code == 0
        assert len((out / "rows.jsonl").read_text().splitlines()) == len(lines) + 3  # a session, two videos
        cases = json.loads((out / "quality.json").read_text())["cases"]
        assert [case["name"] for case in cases] == ["slow", "new"]
        assert cases[1]["speedup"]["videos"] == 2  # the full run was made anew, beside them


# id -> options after `bench quality`, and words of the sentence.
BAD = {
    "no_prompt": ([], ["there is no prompt", "--prompts"]),
    "empty_prompt": (["--prompt", " "], ["the prompt is empty"]),
    "unknown_policy": (["--prompt", "a", "--policy", "janno"], ["no case has the policy 'janno'", "jano"]),
    "no_such_prompts": (["--prompts", "no.txt"], ["no.txt cannot be read"]),
    "no_such_cases": (["--prompt", "a", "--cases", "no.yaml"], ["no.yaml cannot be read", "give"]),
    "too_few_steps": (["--prompt", "a", "--steps", "5"], ["nothing between"]),
    "bad_mesh": (
        ["--prompt", "a", "--nproc", 2, *["--cfg", "1", "--ulysses", "1", "--kv", "1"]],
        ["fit 2 ranks"],
    ),
}


@pytest.mark.parametrize(("options", "words"), BAD.values(), ids=BAD)
def test_bad_input(cli, unchanged, tmp_path, small, options, words):
    with unchanged(tmp_path):
        result = cli("bench", "quality", "--config", small, "--out", tmp_path / "out", *options)
    assert_sentence(result, *words)


FILES = {
    "empty prompts": ("prompts.txt", "\n \n", ["has no prompt"]),
    "a seed of its own": ("prompts.jsonl", '{"prompt": "a", "seed": 3}', ["line 1", "seed", "--seeds"]),
    "a setting of its own": ("prompts.jsonl", '{"prompt": "a", "sampling.steps": 3}', ["line 1", "steps"]),
    "unknown key": ("cases.yaml", "a: {policy.warmupp: 3}", ["policy.warmupp", "policy.warmup"]),
    "the full run": ("cases.yaml", "a: {policy.name: full}", ["'a' is the full run itself"]),
    "no case": ("cases.yaml", "", ["holds no case"]),
}


@pytest.mark.parametrize(("name", "content", "words"), FILES.values(), ids=FILES)
def test_bad_files(cli, unchanged, tmp_path, small, name, content, words):
    path = tmp_path / name
    path.write_text(content)
    given = ["--prompts", path] if "prompts" in name else ["--prompt", "a", "--cases", path]
    with unchanged(tmp_path):
        result = cli("bench", "quality", "--config", small, "--out", tmp_path / "out", *given)
    assert_sentence(result, *words)


def test_a_folder_of_something_else(cli, unchanged, tmp_path, small):
    (tmp_path / "letter.txt").write_text("dear")
    with unchanged(tmp_path):
        result = cli("bench", "quality", "--config", small, "--out", tmp_path, "--prompt", "a")
    assert_sentence(result, "exists and is no folder of this command", "give a new one")


def test_a_model_that_is_not_there_leaves_nothing(cli, unchanged, tmp_path, small, model_copy):
    model_copy.weights("transformer").unlink()
    options = ["--model", model_copy.folder, "--prompt", "a", "--out", tmp_path / "out"]
    with unchanged(tmp_path):
        result = cli("bench", "quality", "--config", small, *options)
    assert result.code == 2
    assert "are made" not in result.err


def test_one_frame_is_an_image_on_the_page(cli, small, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "cases.yaml").write_text("slow: {policy.static_threshold: 0.1}\n")
    options = ["--prompt", PROMPTS[0], "--cases", tmp_path / "cases.yaml", "--frames", 1]
    assert cli("bench", "quality", "--config", small, *options, "--out", out).code == 0
    rows = json.loads((out / "quality.json").read_text())["rows"]
    text = (out / "index.html").read_text()
    for row in rows:
        assert row["video"].endswith(".png")
        assert f'<img data-src="{row["video"]}"' in text
        assert load_frames(out / row["video"]).shape == (1, 64, 64, 3)
    assert "<video" not in text
