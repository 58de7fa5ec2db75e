"""Ranks that fail and are started again: the video of an undisturbed run, bit by bit, and what is said."""

import functools
import json
import os
import signal
import time

import pytest
from safetensors.torch import load_file

from tests.cli.sentence import assert_sentence
from tests.launch.conftest import finish, gone, pids, wait_for

# Of the small config's 12 steps 4 and 8 are refreshes, of which the first ends the warm-up, and the cool-down
# begins with 10: a snapshot is taken before each of these, before 11, and before decoding.
OFTEN = ("--set", "snapshot.seconds=0", "--save-latents")
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
# Signs of life are a second apart; `make test` runs two tests at a time, each with several processes. A rank
# that gives none is to be told before the others have waited for it too long.
QUICK = ("--set", "runtime.stall_seconds=6", "--set", "runtime.timeout_seconds=9")


@pytest.fixture(scope="module")
def alone(small, tmp_path_factory):
    """The same video by one process in this one."""
    from jano_dist import cli

    out = tmp_path_factory.mktemp("alone") / "run"
    call = ["generate", "a red ball", "--config", str(small), "--out", str(out), "--save-latents"]
    assert cli.run(call) == 0
    return out


def latents(out):
    return load_file(out / "latents.safetensors")["latents"]


def check(out, alone, steps):
    """The video is there, whole and the same; every step is counted once; nothing is left beside it."""
    assert (latents(out) == latents(alone)).all()
    assert (out / "video.mp4").read_bytes() == (alone / "video.mp4").read_bytes()
    record = json.loads((out / "run.json").read_text())
    assert [step["index"] for step in record["steps"]] == list(range(12))
    assert [row["attempt"] for row in record["recoveries"]] == list(range(1, len(steps) + 1))
    assert [(row["finished"], row.get("step")) for row in record["recoveries"]] == steps
    for row in record["recoveries"]:
        assert row["ended"] < row.get("resumed", float("inf"))
    assert not out.with_name("run.jano-dist-unfinished").exists()
    return record


@pytest.mark.parametrize(
    ("broken", "words", "steps"),
    [
        ("kill:1:9:1", "rank 1 was killed by signal SIGKILL in step 9", [(9, 8)]),
        ("kill:0:2:1", "rank 0 was killed by signal SIGKILL in step 2", [(2, 0)]),  # nothing kept yet
        ("raise:0:6:2", "rank 0 failed in step 6: ValueError: boom", [(6, 4), (6, 4)]),
        ("stop:1:7:1", "rank 1 has given no sign of life for 6 s in step 7", [(7, 4)]),
        ("abort:1:5:1", "in step 5", [(5, 4)]),
        slow("stuck:1:10:1", "in step 10: contact with another rank", [(10, 10)]),
        slow("hang:0:11:1", "in step 11: contact with another rank", [(11, 11)]),
        ("raise:1:decode:1", "rank 1 failed in decode: ValueError: boom", [(12, None)]),
        slow("kill:0:encode:1", "rank 0 was killed by signal SIGKILL in encode", [(0, 0)]),
        ("kill:0:write:1", "rank 0 was killed by signal SIGKILL in decode", [(12, None)]),
    ],
)  # fmt: skip
def test_started_again(supervised, alone, tmp_path, broken, words, steps):
    out = tmp_path / "runs" / "run"
    ended = finish(supervised(broken, out, *OFTEN, *QUICK, recoveries=2))
    assert (ended.code, ended.err) == (0, "")
    told = [line for line in ended.out.splitlines() if "starting all ranks again" in line]
    assert len(told) == len(steps)
    assert words in told[0]
    assert told[0].endswith("(1 of 2)")
    check(out, alone, steps)
    assert gone(tmp_path, 2 * (1 + len(steps)))


def test_given_up_and_resumed(supervised, jano_dist, generate, alone, tmp_path):
    """Three starts fail; then the user goes on, on one process and without saying what it was."""
    out = tmp_path / "runs" / "run"
    ended = finish(supervised("raise:1:9", out, *OFTEN, recoveries=2))
    assert ended.code == 1
    (sentence,) = ended.sentences
    assert sentence.endswith(f"; to go on: jano-dist generate --resume {out}")
    assert not out.exists()
    again = finish(jano_dist("generate", "--resume", out, "--save-latents"))
    assert (again.code, again.err) == (0, "")
    record = check(out, alone, [])
    assert record["resumed_from_step"] == 8
    assert record["prompt"] == "a red ball"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_supervisor_ended_and_resumed(supervised, jano_dist, alone, tmp_path, number):
    out = tmp_path / "runs" / "run"
    process = supervised("hang:1:9", out, *OFTEN)
    wait_for(tmp_path / "time", process)
    os.killpg(process.pid, number) if number == signal.SIGINT else os.kill(process.pid, number)
    ended = finish(process)
    if number == signal.SIGINT:
        wanted = f"jano-dist: interrupted: nothing was written; to go on: jano-dist generate --resume {out}\n"
        assert (ended.code, ended.err) == (130, wanted)
    assert gone(tmp_path, 2)
    again = finish(jano_dist("generate", "--resume", out, "--nproc", 2, "--save-latents"))
    assert (again.code, again.err) == (0, "")
    assert check(out, alone, [])["resumed_from_step"] == 8


class TestBadInput:
    @pytest.fixture(scope="class")
    def unfinished(self, small, tmp_path_factory):
        """A run that was interrupted in its ninth step."""
        from jano_dist import cli
        from jano_dist.denoise import Denoiser

        out, whole = tmp_path_factory.mktemp("unfinished") / "run", Denoiser._predicted

        def interrupted(self, state, index, *rest):
            if index == 9:
                raise KeyboardInterrupt
            return whole(self, state, index, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Denoiser, "_predicted", interrupted)
            call = ["generate", "a red ball", "--config", str(small), "--out", str(out)]
            assert cli.run([*call, "--set", "snapshot.seconds=0"]) == 130
        return out

    def test_no_snapshot(self, cli, tmp_path):
        assert_sentence(cli("generate", "--resume", tmp_path), "no whole snapshot is in", "without --resume")

    def test_damaged(self, cli, unfinished, tmp_path):
        folder = tmp_path / "run.jano-dist-unfinished"
        folder.mkdir()
        for path in unfinished.with_name("run.jano-dist-unfinished").iterdir():
            (folder / path.name).write_bytes(path.read_bytes()[:-1])
        assert_sentence(cli("generate", "--resume", tmp_path / "run"), "no whole snapshot is in")

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["a blue ball"], ["is of the prompt 'a red ball', not of 'a blue ball'"]),
            (["--steps", 13], ["has sampling.steps 12, not 13", "without --resume"]),
            (["--seed", 7], ["has sampling.seed 0, not 7"]),
            (["--set", "policy.warmup=5"], ["has policy.warmup 4, not 5"]),
            (["--frames", 9], ["has video.frames 5, not 9"]),
            (["--model", "elsewhere"], ["has model.name"]),
            (["--set", "runtime.recoverys=1"], ["unknown key 'runtime.recoverys'"]),
            (["--out", "elsewhere"], ["leave --out out"]),
            (["--config", "wan-tiny", "--preset", "fast"], ["leave --config, --preset out"]),
        ],
    )
    def test_another_video(self, cli, unfinished, options, words):
        assert_sentence(cli("generate", "--resume", unfinished, *options), *words)

    @pytest.mark.parametrize("prompt", ["a red ball", "a blue ball"])
    def test_without_resume(self, jano_dist, small, unfinished, alone, tmp_path, prompt):
        """The same command goes on; one for another video begins, and says what it replaces."""
        beside, out = unfinished.with_name("run.jano-dist-unfinished"), tmp_path / "run"
        (tmp_path / beside.name).mkdir()
        for path in beside.iterdir():
            (tmp_path / beside.name / path.name).write_bytes(path.read_bytes())
        call = ["generate", prompt, "--config", small, "--out", out, "--set", "snapshot.seconds=0"]
        ended = finish(jano_dist(*call, "--save-latents"))
        assert ended.code == 0
        record = json.loads((out / "run.json").read_text())
        assert not (tmp_path / beside.name).exists()
        if prompt == "a red ball":
            assert ended.err == ""
            assert "going on from step 8\n" in ended.out
            assert (latents(out) == latents(alone)).all()
        else:
            (note,) = ended.sentences
            assert "is of the prompt 'a red ball', not of 'a blue ball': this one begins" in note
        assert record["resumed_from_step"] == (8 if prompt == "a red ball" else 0)


@pytest.mark.slow
def test_torchrun_starts_again_and_resumes(start, generate, alone, tmp_path):
    """Its own elastic restart, on a store that is not the rendezvous' (see launchers/torchrun.sh)."""
    import sys

    from tests.launch.conftest import HERE, PATHS

    call = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "--max-restarts", 2)
    ended = finish(
        start(
            *call, HERE / "broken.py", *generate(tmp_path / "runs" / "run", *OFTEN),
            BROKEN="kill:1:9:1", TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1", **PATHS,
        )
    )  # fmt: skip
    assert ended.code == 0
    record = check(tmp_path / "runs" / "run", alone, [])
    assert record["resumed_from_step"] == 8


@pytest.mark.slow
def test_two_agents_start_again_and_resume(start, generate, alone, tmp_path):
    """As on two nodes. Each agent counts its own restarts: rank 0 does not know that it is not the first."""
    import sys

    from tests.launch.conftest import HERE, PATHS

    agent = (
        sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 1,
        "--max-restarts", 2, "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:29743",
        "--rdzv-id", tmp_path.name,
    )  # fmt: skip
    call = generate(tmp_path / "runs" / "run", *OFTEN)
    more = {"BROKEN": "kill:1:9:1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **PATHS}
    agents = [start(*agent, HERE / "broken.py", *call, **more) for _ in range(2)]
    assert [finish(each).code for each in agents] == [0, 0]
    assert check(tmp_path / "runs" / "run", alone, [])["resumed_from_step"] == 8


def test_a_deaf_rank_ends_with_the_others(supervised, tmp_path):
    """Asleep in C, with its signals blocked: its watching thread ends it when another gives the cause."""
    began = time.monotonic()
    ended = finish(supervised("stuck:1:5", tmp_path / "run", *QUICK))
    assert ended.code == 1
    assert "no sign came from rank 1" in ended.sentences[0]
    assert gone(tmp_path, 2, patience=2)
    assert len(pids(tmp_path)) == 2
    assert time.monotonic() - began < 100
