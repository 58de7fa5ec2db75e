"""Ranks on Ray: its own cluster of one machine, and simulated nodes of which one is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from tests.cli.sentence import assert_sentence
from tests.launch.conftest import HERE, PATHS, Ended, finish, gone

SECRET = "a" * 64
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": SECRET}
# Else a lost node is known to be lost after a quarter of a minute.
SOON = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_timeout_ms": "1000",
}


@pytest.fixture(scope="module")
def alone(small, tmp_path_factory):
    """The same video by one process in this one."""
    from jano_dist import cli

    out = tmp_path_factory.mktemp("alone") / "run"
    call = ["generate", "a red ball", "--config", str(small), "--out", str(out), "--save-latents"]
    assert cli.run(call) == 0
    return load_file(out / "latents.safetensors")["latents"]


def temporary():
    return set(Path("/tmp").glob("jano-ray-*")) | set(Path("/dev/shm").iterdir())


def servers():
    return {each for each in psutil.process_iter() if each.name() in ("raylet", "gcs_server")}


def test_a_cluster_of_its_own(start, generate, alone, tmp_path):
    """A rank is killed meanwhile; nothing is left of ranks, cluster, or its folder."""
    running, before, out = servers(), temporary(), tmp_path / "runs" / "run"
    call = generate(out, "--nproc", 2, "--launcher", "ray", "--save-latents", "--set", "snapshot.seconds=0")
    ended = finish(start(sys.executable, HERE / "supervised.py", *call, BROKEN="kill:1:9:1", **PATHS))
    assert (ended.code, ended.err) == (0, "")
    assert "rank 1 was killed by signal SIGKILL in step 9" in ended.out
    assert ended.out.count("denoise") == 2  # rank 0 is heard
    assert (load_file(out / "latents.safetensors")["latents"] == alone).all()
    (row,) = json.loads((out / "run.json").read_text())["recoveries"]
    assert (row["finished"], row["step"]) == (9, 8)
    assert gone(tmp_path, 4)
    assert list(out.parent.iterdir()) == [out]
    assert servers() <= running
    assert temporary() <= before


def test_nobody_at_the_address(cli, generate, tmp_path):
    result = cli(*generate(tmp_path / "run", "--nproc", 2, "--launcher", "ray", "--address", "127.0.0.1:1"))
    assert_sentence(result, "no Ray cluster answers at 127.0.0.1:1", "HOST:PORT")


def test_without_a_number_of_ranks(cli, generate, tmp_path):
    result = cli(*generate(tmp_path / "run", "--launcher", "ray"))
    assert_sentence(result, "--launcher ray starts as many ranks as --nproc says")


@contextmanager
def nodes(number):
    process = subprocess.Popen(
        [sys.executable, HERE / "nodes.py", number],
        env={**os.environ, **TOKEN, **SOON},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    yield process
    process.stdin.close()
    process.wait(30)


@pytest.fixture(scope="module")
def cluster():
    """The address of a head without GPUs and three nodes that say they have two each."""
    with nodes("3") as process:
        yield process.stdout.readline().strip()


def on(cluster, *more):
    return ["--launcher", "ray", "--address", cluster, "--save-latents", "--set", "snapshot.seconds=0", *more]


@pytest.mark.slow
class TestNodes:
    def test_more_ranks_than_there_are(self, start, command, cluster, generate, tmp_path):
        call = generate(tmp_path / "run", "--nproc", 8, *on(cluster))
        ended = finish(start(*command[0], *call, **TOKEN))
        assert ended.code == 2
        (sentence,) = ended.sentences
        assert "8 ranks need as many GPUs" in sentence
        assert (
            "4 nodes with 0, 2, 2, 2 GPUs, 6 of them free" in sentence or "GPUs, 6 of them free" in sentence
        )

    def test_a_cluster_that_grows(self, start, command, generate, tmp_path):
        """Nodes that do not exist yet are asked for, and once they are there no longer."""
        out = tmp_path / "run"
        with nodes("asked") as process:
            address = process.stdout.readline().strip()
            gang = start(*command[0], *generate(out, "--nproc", 2, *on(address, "--wait", 60)), **TOKEN)
            assert json.loads(process.stdout.readline()) == [{"GPU": 1}, {"GPU": 1}]
            ended = finish(gang)
            assert (ended.code, ended.err) == (0, "")
            assert (out / "video.mp4").exists()
            process.stdin.write("\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline()) == []

    def test_another_token(self, start, command, cluster, generate, tmp_path):
        call = generate(tmp_path / "run", "--nproc", 2, *on(cluster))
        ended = finish(start(*command[0], *call, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="b" * 64))
        assert ended.code == 2
        (sentence,) = ended.sentences
        assert "cannot be used" in sentence
        assert "token" in sentence

    def test_ranks_of_a_node_are_together(self, start, command, cluster, generate, alone, tmp_path):
        out = tmp_path / "runs" / "run"
        ended = finish(start(*command[0], *generate(out, "--nproc", 4, *on(cluster)), **TOKEN))
        assert ended.code == 0, ended
        record = json.loads((out / "run.json").read_text())
        assert record["mesh"] == {"cfg": 2, "kv": 1, "ulysses": 2, "world": 4}
        assert (load_file(out / "latents.safetensors")["latents"] - alone).abs().max() <= 3e-4

    def test_a_node_is_lost(self, start, cluster, generate, alone, tmp_path):
        """The gang moves to the node that was not used, and goes on."""
        out = tmp_path / "runs" / "run"
        call = generate(out, "--nproc", 4, *on(cluster, "--set", "runtime.timeout_seconds=20"))
        process = start(sys.executable, HERE / "supervised.py", *call, BROKEN="hang:0:9:1", **PATHS, **TOKEN)
        deadline = time.monotonic() + 100
        while not (tmp_path / "time").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        rank = psutil.Process(int((tmp_path / "pid3").read_text()))
        raylet = next(each for each in rank.parents() if each.name() == "raylet")
        raylet.send_signal(signal.SIGKILL)
        ended: Ended = finish(process)
        assert ended.code == 0, ended
        assert "starting all ranks again (1 of 2)" in ended.out
        assert (load_file(out / "latents.safetensors")["latents"] - alone).abs().max() <= 3e-4
        (row,) = json.loads((out / "run.json").read_text())["recoveries"]
        assert (row["finished"], row["step"]) == (9, 8)
