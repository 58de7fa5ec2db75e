"""A host that is cut off the network, on Ray: real addresses, a real partition."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.launch.conftest import HERE, PATHS, alive, finish, pids
from tests.launch.namespaces import Hosts
from tests.launch.test_ray import SOON, TOKEN, alone  # noqa: F401 - a fixture

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and iproute2"
    ),
]
RAY = Path(sys.executable).with_name("ray")


@pytest.fixture
def hosts():
    """A head without CPUs for ranks, and two hosts with two each."""
    with tempfile.TemporaryDirectory(prefix="jd-", dir="/tmp") as folder, Hosts(3, "jd") as hosts:
        environment = {**os.environ, **TOKEN, **SOON, **PATHS}
        head = [
            "--head",
            "--port",
            6379,
            "--include-dashboard",
            "false",
            "--num-cpus",
            0,
            "--temp-dir",
            folder,
        ]
        for number, options in ((1, head), (2, None), (3, None)):
            join = options or ["--address", f"{hosts.address(1)}:6379", "--num-cpus", 2]
            call = [RAY, "start", "--node-ip-address", hosts.address(number), *join]
            subprocess.run(hosts.call(number, call), env=environment, check=True, capture_output=True)
        yield hosts


def test_the_gang_moves(hosts, start, generate, alone, tmp_path):  # noqa: F811
    out = tmp_path / "runs" / "run"
    call = generate(
        out, "--nproc", 2, "--launcher", "ray", "--address", f"{hosts.address(1)}:6379", "--save-latents",
        "--set", "snapshot.seconds=0", "--set", "runtime.stall_seconds=4",
    )  # fmt: skip
    command = [sys.executable, HERE / "supervised.py", *call]
    process = start(*hosts.call(1, command), BROKEN="hang:1:9:1", **PATHS, **TOKEN)
    while not (tmp_path / "time").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    first = pids(tmp_path)
    used = next(number for number in (2, 3) if str(first[0]) in hosts.processes(hosts.names[number - 1]))
    hosts.cut(used)
    ended = finish(process)
    assert ended.code == 0, ended
    assert "starting all ranks again (1 of 2)" in ended.out
    assert (load_file(out / "latents.safetensors")["latents"] == alone).all()
    (row,) = json.loads((out / "run.json").read_text())["recoveries"]
    assert (row["finished"], row["step"]) == (9, 8)
    # The ranks that were cut off have ended by themselves, though nobody could tell them to.
    deadline = time.monotonic() + 20
    while any(map(alive, first)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, first))
