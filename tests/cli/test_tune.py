"""`jano-dist tune` from the command line to a preset that `generate` takes."""

import json
from statistics import fmean, median, stdev

import pytest
import yaml

from jano_dist import Engine, cli, load_config
from jano_dist.quality import psnr
from tests.cli.sentence import BALL, assert_sentence

PROMPTS = [
    f"{BALL} a navy background",
    "a blue ball moves right over a white background",
    "a green ball moves up over a white background",
    "a red ball moves down over a navy background",
]
SPEEDUP = 2.2
TINY = ("--frames", 1, "--height", 32, "--width", 32)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return path


@pytest.fixture(scope="module")
def arguments(small, prompts):
    """`arguments(out, *more)`: a tuning of a few seconds; by work, which does not depend on the machine."""

    def make(out, *more, target=("--speedup", SPEEDUP)):
        options = ("--config", small, "--prompts", prompts, *TINY, "--by", "work")
        return [str(part) for part in ("tune", *options, *target, "--out", out, *more)]

    return make


@pytest.fixture(scope="module")
def tuned(arguments, tmp_path_factory):
    """The folder of a tuning that went well."""
    out = tmp_path_factory.mktemp("tuned") / "out"
    assert cli.run(arguments(out)) == 0
    return out


def read(out):
    return json.loads((out / "tune.json").read_text())


class TestPreset:
    def test_generate_takes_it(self, tuned, tmp_path):
        assert (
            cli.run(["generate", BALL, "--config", str(tuned / "preset.yaml"), "--out", str(tmp_path / "v")])
            == 0
        )
        made = json.loads((tmp_path / "v" / "run.json").read_text())["config"]
        written = yaml.safe_load((tuned / "preset.yaml").read_text())
        assert {name: made[name] for name in written} == written
        assert set(made) - set(written) == {"preset"}

    def test_its_figures_are_those_of_plain_engines(self, tuned, small):
        """Every prompt's PSNR and work, and mean, median, worst and speed-up of the two halves."""
        overrides = {"video.frames": 1, "video.height": 32, "video.width": 32}
        base = Engine(load_config(small, policy="full", overrides=overrides))
        own = Engine(load_config(tuned / "preset.yaml"))
        content = read(tuned)
        best = content["result"]["best"]
        kept = {run["prompt"]: run for run in content["runs"] if run["name"] == best}
        assert sorted(kept) == [0, 1, 2, 3]
        figures = {}
        for number, prompt in enumerate(PROMPTS):
            full, made = base.generate(prompt), own.generate(prompt)
            work = made.record["flops"]["done"] / full.record["flops"]["done"]
            figures[number] = psnr(full.frames, made.frames), work
            outcome = kept[number]["outcome"]
            assert (outcome["quality"]["psnr"], outcome["work"]) == figures[number]
        for half, numbers in (("tuning", (0, 2)), ("held_out", (1, 3))):
            decibels, works = zip(*(figures[number] for number in numbers), strict=True)
            standing = content["result"]["standings"][best][half]
            assert standing["mean"] == pytest.approx(fmean(decibels))
            assert standing["median"] == pytest.approx(median(decibels))
            assert standing["worst"] == min(decibels)
            assert standing["work"] == pytest.approx(1 / fmean(works))
            assert standing["error"] == pytest.approx(stdev(decibels) / 2**0.5)
            seconds = {
                name: [
                    run["outcome"]["seconds"]["whole"]
                    for run in content["runs"]
                    if run["name"] == name and run["prompt"] in numbers
                ]
                for name in ("full", best)
            }
            assert standing["wall"] == pytest.approx(fmean(seconds["full"]) / fmean(seconds[best]))

    def test_the_best_of_what_was_measured(self, tuned):
        content = read(tuned)
        rows = {
            name: row["tuning"]
            for name, row in content["result"]["standings"].items()
            if row["tuning"]["prompts"] == 2 and row["tuning"]["work"] >= SPEEDUP
        }
        best = content["result"]["best"]
        assert rows[best]["mean"] == max(row["mean"] for row in rows.values())
        assert content["result"]["reached"]

    def test_comments_say_what_was_measured(self, tuned):
        text = (tuned / "preset.yaml").read_text()
        comment = " ".join(line[2:] for line in text.splitlines() if line.startswith("# "))
        content = read(tuned)
        best, versions = content["result"]["best"], content["where"]["versions"]
        standings = content["result"]["standings"][best]
        for part in (
            "jano-dist tune --config", f"for a speed-up of {SPEEDUP} by counted work",
            "wan-tiny, 32x32, 1 frame",
            "12 steps in the full run", "1 rank (cfg 1 x kv 1 x ulysses 1)", f"torch {versions['torch']}",
            f"{best}: ", f"PSNR {standings['tuning']['mean']:.1f} dB in the mean",
            f"{standings['held_out']['worst']:.1f} at worst", "On 2 held-out prompts",
        ):  # fmt: skip
            assert part in comment, part


class TestPage:
    def test_shows_the_choice_and_the_best_control(self, tuned):
        """On the two prompts held out, with their videos; PSNR as in tune.json."""
        content = read(tuned)
        best, control = content["result"]["best"], content["result"]["best_control"]
        page = json.loads((tuned / "page" / "quality.json").read_text())
        assert [case["name"] for case in page["cases"]] == list(dict.fromkeys((best, control)))
        assert page["prompts"] == [PROMPTS[1], PROMPTS[3]]
        measured = {
            (run["name"], PROMPTS[run["prompt"]]): run["outcome"]["quality"]["psnr"]
            for run in content["runs"]
            if run["name"] != "full"
        }
        for row in page["rows"]:
            assert (tuned / "page" / row["video"]).is_file()
            if row["case"] != "full":
                assert row["quality"]["psnr"] == measured[row["case"], row["prompt"]]
        assert PROMPTS[1] in (tuned / "page" / "index.html").read_text()


class TestGoingOn:
    def test_what_is_done_is_done(self, cli, arguments, tuned):
        before = read(tuned)
        result = cli(*arguments(tuned))
        after = read(tuned)
        assert (result.code, result.err) == (0, "")
        assert after["runs"] == before["runs"]
        assert after["result"] == before["result"]
        assert after["calls"] == before["calls"] + 1

    def test_after_an_interruption(self, cli, arguments, tuned, tmp_path, monkeypatch):
        from jano_dist.bench.tune_runs import TuneRuns

        measure, made = TuneRuns.measure, []

        def interrupted(self, candidate, prompt):
            made.append((candidate.name, prompt))
            if len(made) == 4:
                raise KeyboardInterrupt
            return measure(self, candidate, prompt)

        monkeypatch.setattr(TuneRuns, "measure", interrupted)
        out = tmp_path / "out"
        assert_sentence(
            cli(*arguments(out)), "interrupted", f"{out}/tune.json", "same command goes on", code=130
        )
        assert len(read(out)["runs"]) == 2 + 3  # two full runs
        assert not (out / "preset.yaml").exists()
        assert cli(*arguments(out)).code == 0
        content = read(out)
        names = [(run["name"], run["prompt"]) for run in content["runs"]]
        assert len(names) == len(set(names))
        assert [run["call"] for run in content["runs"]].count(1) == 5
        whole = read(tuned)
        assert names == [(run["name"], run["prompt"]) for run in whole["runs"]]
        assert content["result"]["best"] == whole["result"]["best"]

    def test_another_machine(self, cli, arguments, tuned, tmp_path):
        out = tmp_path / "out"
        out.mkdir()
        content = read(tuned)
        content["where"]["device"] = "A fast GPU"
        (out / "tune.json").write_text(json.dumps(content))
        assert_sentence(
            cli(*arguments(out)), "measured with another device (A fast GPU, now cpu)", "new folder"
        )
        assert read(out) == content


class TestUnreached:
    def test_writes_the_best_and_fails(self, cli, arguments, tmp_path):
        out = tmp_path / "out"
        result = cli(*arguments(out, target=("--speedup", 40)))
        words = (
            "a speed-up of 40 by counted work was not reached",
            "the best that was found, fewer steps, 3",
        )
        assert_sentence(result, *words, f"{out}/preset.yaml", code=1)
        assert "# a speed-up of 40 by counted work was not reached" in (out / "preset.yaml").read_text()
        assert load_config(out / "preset.yaml").sampling.steps == 3

    def test_no_time(self, cli, arguments, tmp_path):
        out = tmp_path / "out"
        result = cli(*arguments(out, "--minutes", 0.0001))
        assert_sentence(result, "time was up before anything was compared", "more --minutes", code=1)
        assert not (out / "preset.yaml").exists()


class TestControls:
    def test_plain_fewer_steps_are_said_to_be_best(self, tuned):
        """On this model at this size they are, at this speed-up; the preset is that then."""
        result = read(tuned)["result"]
        text = (tuned / "preset.yaml").read_text()
        if result["control_is_best"]:
            assert "Plain fewer steps are best here" in text or "every n-th step is best here" in text
        else:
            assert f"The best plain control is {result['best_control']}" in text


BAD = {
    "no_target": (("--psnr", None), ["either --psnr or --speedup", "neither was given", "give one"]),
    "both_targets": (("--speedup", 2), ["both were given", "give one"]),
    "psnr": (("--psnr", 70), ["--psnr 70 is no PSNR to aim at", "between 0 and 60"]),
    "speedup": (("--psnr", None, "--speedup", 1), ["--speedup 1 is none", "above 1"]),
    "minutes": (("--minutes", 0), ["--minutes 0 is no time"]),
    "not_a_number": (("--psnr", "nan"), ["--psnr nan is no PSNR"]),
    "unknown_config": (("--config", "wan-tinny"), ["there is no config 'wan-tinny'"]),
    "nproc": (("--nproc", 3, "--cfg", 2), ["--cfg 2 is 2 ranks, which does not fit --nproc 3"]),
    "ray_without_nproc": (("--launcher", "ray"), ["give it"]),
}


class TestBadInput:
    @pytest.mark.parametrize(("options", "words"), BAD.values(), ids=BAD)
    def test_options(self, cli, small, prompts, tmp_path, options, words):
        given = {"--config": small, "--prompts": prompts, "--psnr": 30, "--out": tmp_path / "out"}
        given |= dict(zip(options[::2], options[1::2], strict=True))
        result = cli("tune", *(part for pair in given.items() if pair[1] is not None for part in pair))
        assert_sentence(result, *words)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("p.txt", "", ["has no prompt", "write one on each line"]),
            ("p.csv", "a", ["no prompts file"]),
            (
                "p.jsonl",
                '{"prompt": "a", "video.frames": 9}',
                ["line 1", "cannot set video.frames", "leave it out"],
            ),
            ("p.jsonl", '{"prompt": "a", "negative_prompt": "b"}', ["line 1", "one negative prompt for all"]),
        ],
    )
    def test_prompts(self, cli, small, tmp_path, name, content, words):
        (tmp_path / name).write_text(content)
        options = ("--config", small, "--prompts", tmp_path / name, "--psnr", 30, "--out", tmp_path / "out")
        assert_sentence(cli("tune", *options), *words)
        assert not (tmp_path / "out").exists()

    def test_a_folder_of_something_else(self, cli, small, prompts, tmp_path, unchanged):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "letter.txt").write_text("dear")
        options = ("--config", small, "--prompts", prompts, "--psnr", 30, "--out", tmp_path / "out")
        with unchanged(tmp_path):
            assert_sentence(cli("tune", *options), "is not the folder of a tuning", "new folder")

    def test_another_tuning(self, cli, arguments, tuned, unchanged):
        with unchanged(tuned):
            result = cli(*arguments(tuned, "--seed", 5))
            assert_sentence(result, "another tuning (the section sampling is not the same)", "new folder")
