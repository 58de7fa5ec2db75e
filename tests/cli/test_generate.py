"""What the commands leave behind when all goes well, when the run goes wrong, and when it is interrupted."""

import errno
import json
import math
import os
import signal
import subprocess
from datetime import UTC, datetime, timedelta
from importlib.metadata import entry_points
from io import StringIO
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.numpy import load_file
from safetensors.torch import load, save

from jano_dist import cli as command_line
from jano_dist import load_config, report, run_folder
from jano_dist.cli.app import run
from jano_dist.cli.log import Bar
from jano_dist.cli.ranks import without_options
from jano_dist.gang import Stopped
from jano_dist.models.wan import WanTransformer
from jano_dist.observe import StepRecord
from tests.cli.sentence import BALL, assert_sentence

FILES = {"video.mp4", "complexity.png", "timeline.png", "run.json"}

# Of the small config: 4 warm-up steps; every 4th is a refresh, every 2nd moderate; 2 cool-down steps.
KINDS = [*["full"] * 4, "refresh", "active", "moderate", "active", "refresh", "active", *["full"] * 2]
TOKENS = 2 * 4 * 4


def strict(text):
    """Parse JSON as the standard has it: without NaN and Infinity."""

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def made(tmp_path_factory, small):
    """The folder of one small run, with latents. Tests only read it."""
    out = tmp_path_factory.mktemp("made") / "run"
    arguments = ["generate", BALL, "--out", str(out), "--config", str(small), "--save-latents"]
    assert command_line.run(arguments) == 0
    return out


@pytest.fixture(scope="module")
def record(made):
    return strict((made / "run.json").read_text())


@pytest.fixture
def earlier(made, tmp_path):
    """A run folder with a file of the user's in it, alone in its parent."""
    folder = tmp_path / "parent" / "run"
    folder.mkdir(parents=True)
    for file in made.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "notes.txt").write_text("mine")
    return folder


class TestFiles:
    def test_exactly_these(self, made):
        assert {file.name for file in made.iterdir()} == FILES | {"latents.safetensors"}

    def test_video(self, made):
        frames = iio.imread(made / "video.mp4", plugin="FFMPEG")
        assert frames.shape == (5, 64, 64, 3)
        assert iio.immeta(made / "video.mp4", plugin="FFMPEG")["fps"] == 8

    @pytest.mark.parametrize("name", ["complexity.png", "timeline.png"])
    def test_pictures(self, made, name):
        with Image.open(made / name) as picture:
            picture.load()
            assert picture.format == "PNG"
            assert min(picture.size) > 200
            assert len(picture.getcolors(2**24)) > 20

    def test_latents(self, made, model_copy):
        tensors = load_file(made / "latents.safetensors")
        channels = json.loads((model_copy.folder / "vae" / "config.json").read_text())["z_dim"]
        assert set(tensors) == {"latents"}
        assert tensors["latents"].dtype == np.float32
        assert tensors["latents"].shape == (channels, 2, 8, 8)
        assert np.isfinite(tensors["latents"]).all()
        assert tensors["latents"].std() > 0


class TestRecord:
    def test_keys(self, record):
        assert list(record) == [
            "prompt", "config", "made", "resumed_from_step", "start_to_first_step_seconds",
            "device",
            "versions", "mesh", "attention", "policy", "levels", "steps", "seconds", "memory", "flops",
            "telemetry", "recoveries",
        ]  # fmt: skip

    def test_config_is_the_resolved_one(self, record, small):
        assert record["config"] == load_config(small).model_dump(mode="json")
        assert record["config"]["policy"]["moderate_threshold"] == 0.5  # of the file's own preset
        assert record["config"]["sampling"]["seed"] == 0

    def test_versions(self, record):
        assert {"jano_dist", "python", "torch", "diffusers"} <= set(record["versions"])
        assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]

    def test_when_and_where(self, record):
        made = datetime.fromisoformat(record["made"])
        assert timedelta(0) <= datetime.now(UTC) - made < timedelta(hours=1)
        gpu = torch.cuda.is_available()
        assert record["device"] == (torch.cuda.get_device_name() if gpu else "cpu")

    def test_mesh_and_policy(self, record):
        assert record["mesh"] == {"cfg": 1, "kv": 1, "ulysses": 1, "world": 1}
        assert record["policy"] == "jano"

    def test_levels(self, record):
        levels = record["levels"]
        assert list(levels) == ["static", "moderate", "active"]
        assert math.fsum(levels.values()) == pytest.approx(1)
        assert levels["static"] > 0  # the block that changed least
        assert levels["active"] > 0  # the block that changed most

    def test_steps_follow_the_schedule(self, record):
        share = {"full": 1, "refresh": 1, "active": record["levels"]["active"]}
        share["moderate"] = share["active"] + record["levels"]["moderate"]
        assert [step["kind"] for step in record["steps"]] == KINDS
        assert [step["index"] for step in record["steps"]] == list(range(12))
        assert [step["tokens"] for step in record["steps"]] == [round(share[kind] * TOKENS) for kind in KINDS]
        for step in record["steps"]:
            assert set(step) == {"index", "kind", "tokens", "seconds", "comm_seconds", "comm_bytes", "ranks"}
            assert type(step["tokens"]) is int
            assert step["seconds"] > 0
            assert step["comm_seconds"] == step["comm_bytes"] == 0  # one process
            own = {name: [step[name]] for name in ("tokens", "seconds", "comm_seconds", "comm_bytes")}
            assert step["ranks"] == own

    def test_seconds(self, record):
        seconds = dict(record["seconds"])
        assert set(seconds) == {"load", "encode", "denoise", "decode", "total"}
        assert all(value > 0 for value in seconds.values())
        assert seconds["denoise"] >= math.fsum(step["seconds"] for step in record["steps"])
        total = seconds.pop("total")
        assert total == pytest.approx(math.fsum(seconds.values()))

    def test_start_to_first_step(self, record):
        """Of a process that has done other things before: loading and encoding at least."""
        assert record["start_to_first_step_seconds"] > record["seconds"]["load"] + record["seconds"]["encode"]

    def test_memory(self, record, model_copy):
        sizes = json.loads((model_copy.folder / "transformer" / "config.json").read_text())
        width = sizes["num_attention_heads"] * sizes["attention_head_dim"]
        branches, keys_and_values, float32 = 2, 2, 4
        names = {"cache_bytes_per_rank", "workspace_bytes_per_rank", "peak_bytes_per_rank"}
        assert set(record["memory"]) == names
        assert record["memory"]["workspace_bytes_per_rank"] == 0  # the rows of `kv` are used where they lie
        wanted = branches * keys_and_values * sizes["num_layers"] * TOKENS * width * float32
        assert record["memory"]["cache_bytes_per_rank"] == wanted
        assert record["memory"]["peak_bytes_per_rank"] > wanted

    def test_flops(self, record):
        assert set(record["flops"]) == {"full", "done"}
        assert type(record["flops"]["full"]) is int
        assert 0 < record["flops"]["done"] < record["flops"]["full"]


def test_output_says_where_and_what(cli, small, tmp_path):
    result = cli("generate", BALL, "--out", tmp_path / "run", "--config", small, "--policy", "full")
    assert result.code == 0
    assert result.err == ""
    position = 0
    for word in (
        "load",
        "encode",
        "step 12/12: full, 32 tokens",
        "decode",
        "write",
        "video.mp4",
        "100% of the work",
        "run.json",
        "the whole command took ",
    ):
        position = result.out.find(word, position)
        assert position >= 0, (word, result.out)
    record = strict((tmp_path / "run" / "run.json").read_text())
    assert record["policy"] == "full"
    assert record["config"]["policy"] == {"name": "full"}
    assert record["config"]["preset"] is None
    assert record["levels"] == {"static": 0, "moderate": 0, "active": 1}
    assert {step["kind"] for step in record["steps"]} == {"full"}
    assert record["flops"]["done"] == record["flops"]["full"]
    assert record["memory"]["cache_bytes_per_rank"] == 0
    assert {file.name for file in (tmp_path / "run").iterdir()} == FILES  # latents only where asked for


def test_a_word_the_model_does_not_know_is_noted(cli, small, tmp_path):
    result = cli("generate", f"{BALL} zyzzyva", "--out", tmp_path / "run", "--config", small, "--steps", "9")
    assert_sentence(result, "note: the model does not know zyzzyva", code=0)


def test_a_prompt_that_is_cut_off_is_noted(cli, small, tmp_path):
    short = ["--steps", "9", "--set", "model.max_sequence_length=4"]
    result = cli("generate", BALL, "--out", tmp_path / "run", "--config", small, *short)
    assert_sentence(result, "note: the prompt is longer than 4 tokens", code=0)


def test_a_negative_prompt_that_is_cut_off_is_noted(cli, small, tmp_path):
    options = ["--policy", "full", "--steps", "1", "--set", f"sampling.negative_prompt={'ball ' * 40}"]
    result = cli("generate", BALL, "--out", tmp_path / "run", "--config", small, *options)
    assert_sentence(result, "note: the negative prompt is longer than 32 tokens", code=0)


def test_a_prompt_that_begins_with_a_dash(cli, small, tmp_path):
    options = ["--out", tmp_path / "run", "--config", small, "--policy", "full", "--steps", "1"]
    result = cli("generate", *options, "--", f"-{BALL}")
    assert result.code == 0, result.err
    assert strict((tmp_path / "run" / "run.json").read_text())["prompt"] == f"-{BALL}"


def test_what_follows_two_dashes_is_no_option():
    """A prompt named like the option that is taken out of the ranks' command line."""
    arguments = ["generate", "--nproc", "2", "--out", "o", "--nproc=3", "--", "--nproc=4 balls"]
    wanted = ["generate", "--out", "o", "--", "--nproc=4 balls"]
    assert without_options(arguments, ["--nproc"]) == wanted


def test_parents_of_out_are_made(cli, small, tmp_path):
    result = cli("generate", BALL, "--out", tmp_path / "a" / "b", "--config", small, "--steps", "9")
    assert result.code == 0, result.err
    assert {path.name for path in tmp_path.rglob("*")} == FILES | {"a", "b"}


def test_an_empty_folder_may_be_the_out(cli, small, tmp_path):
    (tmp_path / "run").mkdir()
    result = cli("generate", BALL, "--out", tmp_path / "run", "--config", small, "--steps", "9")
    assert result.code == 0, result.err


def test_the_seed_decides(cli, small, tmp_path, made):
    for seed in (0, 1):
        out = tmp_path / str(seed)
        options = ["--config", small, "--seed", seed, "--save-latents"]
        assert cli("generate", BALL, "--out", out, *options).code == 0
    folders = (made, tmp_path / "0", tmp_path / "1")
    latents = [load_file(folder / "latents.safetensors")["latents"] for folder in folders]
    assert np.array_equal(latents[0], latents[1])
    assert not np.array_equal(latents[0], latents[2])


def test_a_run_folder_is_replaced(cli, small, earlier):
    """Without --save-latents the earlier run's latents go, or they would pass for this run's."""
    before = (earlier / "video.mp4").read_bytes()
    result = cli("generate", BALL, "--out", earlier, "--config", small, "--seed", "5")
    assert result.code == 0, result.err
    assert {file.name for file in earlier.iterdir()} == FILES | {"notes.txt"}
    assert (earlier / "notes.txt").read_text() == "mine"
    assert (earlier / "video.mp4").read_bytes() != before
    assert strict((earlier / "run.json").read_text())["config"]["sampling"]["seed"] == 5
    assert [path.name for path in earlier.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("folder", ["run", "new"])
def test_run_json_is_never_there_alone(cli, small, earlier, monkeypatch, folder):
    """Whatever becomes of the run between two moves: where there is a record, there is what it records."""
    out, seen = earlier.parent / folder, []

    def watched(move):
        def call(*arguments, **keywords):
            move(*arguments, **keywords)
            seen.append({path.name for path in out.iterdir()} if out.exists() else set())

        return call

    for name in ("replace", "rename"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    result = cli("generate", BALL, "--out", out, "--config", small, "--steps", "9")
    assert result.code == 0, result.err
    assert seen
    assert all(names >= FILES for names in seen if "run.json" in names)


def test_in_a_process_of_its_own_with_the_shipped_config(process, tmp_path):
    video = ["--frames", "5", "--height", "64", "--width", "64", "--steps", "3"]
    result = process("generate", BALL, "--policy", "full", "--out", tmp_path / "run", *video)
    assert result.code == 0, result.err
    assert result.err == ""
    assert {file.name for file in (tmp_path / "run").iterdir()} == FILES


def test_a_reader_that_leaves(command, small, tmp_path):
    """`jano-dist generate ... | head -1`, or a connection that breaks: the video is made all the same."""
    call, environment = command
    arguments = ["generate", BALL, "--config", small, "--out", tmp_path / "run"]
    process = subprocess.Popen([*call, *map(str, arguments)], env=environment, stdout=subprocess.PIPE)
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    assert {file.name for file in (tmp_path / "run").iterdir()} == FILES


def test_the_installed_command_is_the_same():
    (script,) = entry_points(group="console_scripts", name="jano-dist")
    assert script.load() is command_line.main


def test_progress_bar_on_a_terminal():
    """Step, kind, tokens and time left."""
    screen = StringIO()
    console = Console(file=screen, force_terminal=True, width=120, color_system=None)
    with Bar(console) as bar:
        assert "load" in screen.getvalue()  # while the first libraries are imported
        bar.phase("denoise")
        for index in range(6):
            bar.step(StepRecord(index, "moderate", 12, 12, 0.1, 0.0, 0), 20)
    for word in ("denoise", "6/20", "moderate, 12 tokens", "0:00"):
        assert word in screen.getvalue()


class TestNoArguments:
    @pytest.mark.parametrize("arguments", [[], ["--help"]])
    def test_help(self, cli, arguments):
        result = cli(*arguments)
        assert result.code == 0
        assert result.err == ""
        for word in ("generate", "compare", "doctor"):
            assert word in result.out


class TestRunGoesWrong:
    def test_non_finite_weights(self, cli, unchanged, small, earlier, model_copy):
        file = model_copy.weights("transformer")
        tensors = load(file.read_bytes())
        tensors["proj_out.weight"].fill_(math.nan)
        model_copy.write(file, save(tensors))
        with unchanged(earlier.parent):
            result = cli("generate", BALL, "--out", earlier, "--config", small, "--model", model_copy.folder)
        assert_sentence(result, "non-finite in step 0 (full)", "check the weights", code=1)

    @pytest.mark.parametrize("step", [0, 5, 11])
    def test_non_finite_latents_name_the_step(self, cli, unchanged, small, tmp_path, monkeypatch, step):
        calls, forward = [], WanTransformer.forward

        def break_at_step(*arguments):
            calls.append(len(calls))
            return forward(*arguments) * (math.inf if calls[-1] == step else 1)

        monkeypatch.setattr(WanTransformer, "forward", break_at_step)
        options = ["--config", small, "--set", "sampling.guidance=1"]  # so one forward per step
        with unchanged(tmp_path):
            result = cli("generate", BALL, "--out", tmp_path / "run", *options)
        assert_sentence(result, f"non-finite in step {step} ({KINDS[step]})", "check the weights", code=1)
        assert len(calls) == step + 1

    def test_disk_full(self, cli, unchanged, small, earlier, monkeypatch):
        def fail(path, *arguments):
            path.write_bytes(b"half a vi")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(run_folder, "write_frames", fail)
        with unchanged(earlier.parent):
            result = cli("generate", BALL, "--out", earlier, "--config", small, "--steps", "9")
        assert_sentence(result, "could not be written", "No space left on device", "make room", code=1)


class TestInterrupted:
    @pytest.mark.parametrize("folder", ["run", "new"])
    def test_while_writing(self, cli, unchanged, small, earlier, monkeypatch, folder):
        def interrupt(*arguments):
            raise KeyboardInterrupt

        monkeypatch.setattr(report, "complexity_picture", interrupt)
        with unchanged(earlier.parent):
            out = earlier.parent / folder
            result = cli("generate", BALL, "--out", out, "--config", small, "--steps", "9")
        assert_sentence(result, "interrupted: nothing was written", code=130)

    def test_before_the_first_file_is_moved(self, cli, unchanged, small, earlier, monkeypatch):
        def interrupted(move):
            def call(source, target):
                if {earlier, *earlier.iterdir()} & {Path(source), Path(target)}:
                    raise KeyboardInterrupt
                move(source, target)

            return call

        for name in ("replace", "rename"):
            monkeypatch.setattr(os, name, interrupted(getattr(os, name)))
        with unchanged(earlier.parent):
            result = cli("generate", BALL, "--out", earlier, "--config", small, "--steps", "9")
        assert_sentence(result, "interrupted: nothing was written", code=130)

    def test_terminated_before_anything_is_begun(self, capfd):
        def terminated():
            raise Stopped

        assert run(["doctor"], started=0.0, begin=terminated) == 143
        assert capfd.readouterr() == ("", "")

    def test_terminated_while_writing(self, cli, unchanged, small, earlier, monkeypatch):
        def terminate(*arguments):
            raise Stopped

        monkeypatch.setattr(report, "timeline_picture", terminate)
        with unchanged(earlier.parent):
            result = cli("generate", BALL, "--out", earlier, "--config", small, "--steps", "9")
        assert (result.code, result.err) == (143, "")

    def test_while_denoising(self, command, unchanged, small, earlier):
        """Ctrl-C on a real process, with an earlier run in the folder."""
        call, environment = command
        arguments = ["--out", earlier, "--config", small, "--policy", "full", "--steps", "1000"]
        with unchanged(earlier.parent):
            child = subprocess.Popen(
                [*call, "generate", BALL, *map(str, arguments)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                # A shell starts background jobs, as CI runs may be, with the signal ignored.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
            try:
                while child.stdout.readline() not in ("denoise\n", ""):
                    pass
                child.send_signal(signal.SIGINT)
                out, err = child.communicate(timeout=60)
            finally:
                child.kill()
        assert "decode" not in out
        assert child.returncode == 130
        assert err == "jano-dist: interrupted: nothing was written\n"


class TestCompare:
    @pytest.fixture(scope="class")
    def other(self, tmp_path_factory, small):
        out = tmp_path_factory.mktemp("other") / "run"
        arguments = ["generate", BALL, "--out", str(out), "--config", str(small), "--seed", "3"]
        assert command_line.run(arguments) == 0
        return out

    def test_run_folders_and_videos_agree(self, cli, made, other):
        folders = cli("compare", made, other, "--json")
        videos = cli("compare", made / "video.mp4", other / "video.mp4", "--json")
        assert folders.code == 0
        assert folders.err == ""
        assert folders.out == videos.out
        result = strict(folders.out)
        assert set(result) == {"psnr", "ssim", "lpips", "lpips_note", "identical"}
        assert result["identical"] is False
        frames = [iio.imread(run / "video.mp4", plugin="FFMPEG").astype(float) for run in (made, other)]
        error = np.mean((frames[0] - frames[1]) ** 2)
        assert result["psnr"] == pytest.approx(10 * math.log10(255**2 / error))
        assert -1 <= result["ssim"] < 1
        assert (result["lpips"] is None) == isinstance(result["lpips_note"], str)

    def test_with_itself(self, cli, made):
        """The PSNR is infinite, for which JSON has no word."""
        result = cli("compare", made, made, "--json")
        assert result.code == 0
        values = strict(result.out)
        assert values["psnr"] is None
        assert values["identical"] is True
        assert values["ssim"] == pytest.approx(1)

    def test_table(self, cli, made, other):
        different, same = cli("compare", made, other), cli("compare", made, made)
        assert different.code == same.code == 0
        for word in ("PSNR", " dB", "SSIM", "LPIPS"):
            assert word in different.out
        assert "identical" in same.out

    def test_says_what_the_encoding_costs(self, cli, made, other, tmp_path):
        """Only where it matters: far below, or where all is equal, it does not."""
        frames = iio.imread(made / "video.mp4", plugin="FFMPEG")
        noisy = frames.astype(int) + np.random.default_rng(0).integers(-1, 2, frames.shape)
        iio.imwrite(
            tmp_path / "near.mp4", noisy.clip(0, 255).astype(np.uint8), plugin="FFMPEG", fps=8, quality=10
        )
        near = cli("compare", made, tmp_path / "near.mp4")
        assert float(near.out.partition(" dB")[0].rpartition(" ")[2]) > 35
        assert "Encoding to mp4 leaves about 40 dB" in near.out
        for video in (made, other):
            assert "Encoding" not in cli("compare", made, video).out

    def test_different_sizes(self, cli, made, tmp_path):
        frames = np.zeros((5, 32, 64, 3), np.uint8)
        iio.imwrite(tmp_path / "low.mp4", frames, plugin="FFMPEG", fps=8)
        result = cli("compare", made, tmp_path / "low.mp4", "--json")
        assert_sentence(result, "5 frames of 64x64 and 5 frames of 64x32", "compare runs of the same size")
        assert result.out == ""


class TestDoctor:
    def test_table(self, cli):
        result = cli("doctor")
        assert result.code == 0
        assert result.err == ""
        for word in ("PyTorch", "backends", "NVML", "xfuser", "ray", "memory"):
            assert word in result.out

    def test_json(self, process):
        """In a process of its own, as a script would call it: nothing but JSON on stdout."""
        result = process("doctor", "--json")
        assert result.code == 0
        assert result.err == ""
        facts = strict(result.out)
        assert facts["torch"]["version"] == torch.__version__
        assert {"devices", "backends", "nvml", "xfuser", "ray", "memory"} <= set(facts)
