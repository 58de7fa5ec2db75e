"""A batch over real ranks: every video once and the same as alone, whoever is killed."""

import json
import os
import signal

import pytest
from safetensors.torch import load_file

from jano_dist import cli as command_line
from tests.cli.sentence import assert_sentence
from tests.launch.conftest import PATHS, Ended, finish, gone, pids, wait_for
from tests.launch.forked import Forked

JOBS = (
    {"prompt": "a red ball", "seed": 1},
    {"prompt": "a blue box", "seed": 2, "id": "box"},
    {"prompt": "a red ball", "negative_prompt": "a box", "policy.name": "full"},
    {"prompt": "a green box", "sampling.guidance": 1.0},
)
NAMES = ("0001", "box", "0003", "0004")
FILES = {"video.mp4", "complexity.png", "timeline.png", "latents.safetensors", "run.json"}
NOBODY = "kill:9:9"  # every rank notes its process id, and none breaks
OFTEN = ("--set", "snapshot.seconds=0")


@pytest.fixture(scope="module")
def alone(small, tmp_path_factory):
    """The same videos, each by a command of its own in this process."""
    folder = tmp_path_factory.mktemp("alone")
    keys = {"seed": "sampling.seed", "negative_prompt": "sampling.negative_prompt"}
    for job, name in zip(JOBS, NAMES, strict=True):
        call = ["generate", job["prompt"], "--config", str(small), "--out", str(folder / name)]
        for key, value in job.items():
            if key not in ("prompt", "id"):
                call += ["--set", f"{keys.get(key, key)}={json.dumps(value)}"]
        assert command_line.run([*call, "--save-latents"]) == 0
    return folder


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f"{json.dumps(job)}\n" for job in JOBS))
    return path


@pytest.fixture
def begin(command, small, prompts, tmp_path, begun):
    """`begin(*options, broken=...)`: the driver in a process, not yet waited for."""

    def start(*options, broken=NOBODY, **environment) -> Forked:
        call = ["batch", prompts, "--out", tmp_path / "out", "--config", small, "--save-latents", *options]
        own = {**command[1], "FAULTS": str(tmp_path), "BROKEN": broken, **PATHS, **environment}
        begun.append(Forked([str(part) for part in call], own, tmp_path))
        return begun[-1]

    return start


@pytest.fixture
def batch(begin):
    """The same, waited for."""

    def run(*options, **environment) -> Ended:
        return finish(begin(*options, **environment))

    return run


def results(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def check(out, alone, names=NAMES, other_mesh=()):
    """Every video is there and the one made alone, bit by bit; nothing else is.

    other_mesh: videos made by several ranks in another order of sums than by one.
    """
    own = {"batch.json", "results.jsonl", "failures.jsonl"}
    assert {path.name for path in out.iterdir()} - own == set(names)
    for name in names:
        assert {path.name for path in (out / name).iterdir()} == FILES
        ours, theirs = (load_file(run / name / "latents.safetensors")["latents"] for run in (out, alone))
        assert (ours - theirs).abs().max() <= (1e-4 if name in other_mesh else 0), name
        if name in other_mesh:
            continue
        assert (out / name / "video.mp4").read_bytes() == (alone / name / "video.mp4").read_bytes()
        ours, theirs = (json.loads((run / name / "run.json").read_text()) for run in (out, alone))
        assert ours["prompt"] == theirs["prompt"]
        assert ours["config"] == theirs["config"] | {"snapshot": ours["config"]["snapshot"]}


def rows(out, name):
    """The recoveries in a run.json."""
    return json.loads((out / name / "run.json").read_text())["recoveries"]


def test_several_gangs(batch, alone, prompts, tmp_path):
    out = tmp_path / "out"
    ended = batch("--gangs", 2)
    assert (ended.code, ended.err) == (0, "")
    check(out, alone)
    assert [(row["id"], row["status"], row["attempts"]) for row in results(out)] == [
        (name, "done", 1) for name in NAMES
    ]
    # In which order is not said: two gangs may end in the same moment.
    told = [line.split(":")[0] for line in ended.out.splitlines()[:-1] if "note:" not in line]
    assert sorted(told) == sorted(NAMES)
    assert "4 done, 0 set aside, 0 left" in ended.out.splitlines()[-1]
    assert gone(tmp_path, 2)
    # Another start, with a line more, makes that and nothing else.
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*")}
    with prompts.open("a") as file:
        file.write('{"prompt": "a red ball", "seed": 2, "id": "more"}\n')
    ended = batch("--gangs", 2)
    assert (ended.code, ended.err) == (0, "")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(out.glob("*/run.json"))) == 5
    assert gone(tmp_path, 3)  # the second gang had nothing to do
    # And now there is nothing to do at all.
    assert batch().code == 0
    assert gone(tmp_path, 3)


def test_set_aside(batch, alone, tmp_path):
    """One prompt fails whenever it is tried; the others are made, in two gangs of two ranks."""
    out = tmp_path / "out"
    options = {"broken": "raise:1:5", "BROKEN_PROMPT": "a blue box"}
    ended = batch("--gangs", 2, "--nproc", 2, **options)
    words = ("1 video of 4 could not be made", "results.jsonl says why", "remove", "failures.jsonl")
    assert_sentence(Ended(ended.code, ended.out, ended.err), *words, code=1)
    check(out, alone, [name for name in NAMES if name != "box"], other_mesh=["0004"])
    starts = len(pids(tmp_path)) // 2  # two, and one after each failure; none when nothing is left by then
    assert 4 <= starts <= 5
    assert gone(tmp_path, 2 * starts)
    row = results(out)[1]
    assert (row["id"], row["status"], row["attempts"], row["path"]) == ("box", "set aside", 3, None)
    assert row["error"].startswith("rank 1 failed in step 5: ValueError: boom")
    said = [line for line in ended.out.splitlines() if line.startswith("box: ")]
    assert [line.partition(" (gang")[0] for line in said] == [
        "box: attempt 1 failed", "box: attempt 2 failed", "box: set aside",
    ]  # fmt: skip
    again = batch("--gangs", 2)
    assert again.code == 1
    assert len(results(out)) == 4
    (out / "failures.jsonl").unlink()
    assert batch().code == 0
    check(out, alone, other_mesh=["0004"])


def test_a_rank_is_killed(batch, alone, tmp_path):
    out = tmp_path / "out"
    ended = batch("--nproc", 2, *OFTEN, broken="kill:1:9:1")
    assert (ended.code, ended.err) == (0, "")
    assert "0001: attempt 1 failed (gang 1: rank 1 was killed by signal SIGKILL in step 9" in ended.out
    check(out, alone, other_mesh=["0004"])
    for name in NAMES:
        (row,) = rows(out, name) or [None]
        assert (row and (row["attempt"], row["finished"], row["step"])) == (
            (1, 9, 8) if name == "0001" else None
        )
    assert results(out)[0]["attempts"] == 2
    assert json.loads((out / "0001" / "run.json").read_text())["resumed_from_step"] == 8


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_the_driver_is_ended(begin, batch, alone, tmp_path, number):
    out = tmp_path / "out"
    process = begin("--gangs", 2, *OFTEN, broken="hang:0:9", BROKEN_PROMPT="a blue box")
    wait_for(tmp_path / "time", process)
    wait_for(out / "0001" / "run.json", process)
    os.kill(process.pid, number)
    ended = finish(process)
    assert gone(tmp_path, 2)
    if number != signal.SIGKILL:
        assert ended.code == 128 + number
        word = "interrupted" if number == signal.SIGINT else "terminated"
        assert ended.err.startswith(f"jano-dist: {word}: ")
        assert ended.err.endswith("videos are done: start the same command again to go on\n")
        assert ended.err.count("\n") == 1
    before = (out / "0001" / "run.json").stat().st_mtime_ns
    ended = batch("--gangs", 2, *OFTEN)
    assert (ended.code, ended.err) == (0, "")
    assert (out / "0001" / "run.json").stat().st_mtime_ns == before
    assert json.loads((out / "box" / "run.json").read_text())["resumed_from_step"] == 8
    assert results(out)[1]["attempts"] == 1  # it was not its fault


def test_a_gang_that_cannot_begin(batch, tmp_path):
    ended = batch("--set", "runtime.recoveries=1", broken="raise:0:prepare")
    words = ("every gang has failed too often", "ValueError: boom", "0 of 4 videos are done")
    assert_sentence(Ended(ended.code, ended.out, ended.err), *words, code=1)
    assert gone(tmp_path, 2)
    assert not (tmp_path / "out" / "failures.jsonl").exists()
    assert not (tmp_path / "out" / "logs").exists()


def test_a_folder_in_the_way(batch, alone, prompts, tmp_path):
    """Of the user's, where a video should go: known to fail again, so it is tried once."""
    out = tmp_path / "out"
    assert batch("--set", "runtime.recoveries=0", broken="raise:0:prepare").code == 1  # the folder is there
    (out / "box").mkdir()
    (out / "box" / "photo").write_text("")
    assert batch().code == 1
    row = results(out)[1]
    assert (row["status"], row["attempts"]) == ("set aside", 1)
    assert "exists and is not a run folder" in row["error"]
    assert [path.name for path in (out / "box").iterdir()] == ["photo"]


class TestBadInput:
    def test_another_batch(self, batch, prompts, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "batch.json").write_text("{}")
        assert_sentence(batch(), "is not the folder of a batch")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["batch.json"]

    def test_a_bad_line(self, batch, prompts, tmp_path):
        good = prompts.read_text().splitlines()[0]
        prompts.write_text(f'{good}\n{{"prompt": "a", "video.frames": 6}}\n')
        assert_sentence(batch(), "prompts.jsonl, line 2: ", "frames", "--skip-bad")
        assert not (tmp_path / "out").exists()

    def test_a_second_driver(self, begin, batch, tmp_path):
        first = begin(broken="hang:0:prepare")
        wait_for(tmp_path / "time", first)
        assert_sentence(batch(), "is in use by another run")
        first.terminate()
        finish(first)

    def test_options(self, cli, tmp_path):
        (tmp_path / "p.txt").write_text("a red ball")
        call = ("batch", tmp_path / "p.txt", "--out", tmp_path / "out")
        assert_sentence(cli(*call, "--gangs", 10_000), "--gangs 10000 x --nproc 1 is more than")
        assert_sentence(cli(*call, "--cfg", 2), "--cfg 2 does not fit 1 rank")
        assert_sentence(cli(*call, "--set", "sampling.stepps=1"), "unknown key 'sampling.stepps'")
        assert not (tmp_path / "out").exists()
