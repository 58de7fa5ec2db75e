"""Ranks started as users start them, and broken ones."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.launch.forked import Forked

HERE = Path(__file__).parent
PATHS = {"PYTHONPATH": str(HERE.parents[1])}  # for the ranks, which run tests/launch/broken.py
LIMIT = 150  # seconds until a test gives up on a process


@dataclass(frozen=True)
class Ended:
    """What a process left behind."""

    code: int
    out: str
    err: str

    @property
    def sentences(self) -> list[str]:
        """What we said on stderr; torchrun says much else."""
        return [line for line in self.err.splitlines() if line.startswith("jano-dist:")]


def finish(process: subprocess.Popen | Forked) -> Ended:
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return Ended(process.returncode, out, err)


@pytest.fixture
def begun(tmp_path):
    """Processes that must not outlive the test."""
    processes = []
    yield processes
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    for pid in filter(alive, pids(tmp_path)):  # torchrun's are in groups of their own
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def start(command, tmp_path, begun):
    """`start(*command, **environment)`: a process of its own group, in a folder of its own."""

    def begin(*call, **more) -> subprocess.Popen:
        process = subprocess.Popen(
            [str(part) for part in call],
            env={**command[1], "FAULTS": str(tmp_path), **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        begun.append(process)
        return process

    return begin


# As a user starts it, which takes seconds of imports for every process; or forked, for a tenth of that.
either_way = pytest.fixture(params=["forked", pytest.param("started", marks=pytest.mark.slow)])


@either_way
def jano_dist(request, command, start, tmp_path, begun):
    """`jano_dist(*arguments, **environment)`: the command line in a process, not yet waited for."""

    def begin(*arguments, **more):
        if request.param == "started":
            return start(*command[0], *arguments, **more)
        environment = {**command[1], "FAULTS": str(tmp_path), **more}
        begun.append(Forked([str(part) for part in arguments], environment, tmp_path))
        return begun[-1]

    return begin


@pytest.fixture
def generate(small):
    """The arguments of a quick run: `generate(out, *more)`."""

    def arguments(out, *more) -> list[str]:
        return ["generate", "a red ball", "--config", str(small), "--out", str(out), *map(str, more)]

    return arguments


@either_way
def supervised(request, command, start, generate, tmp_path, begun):
    """Two ranks by --nproc of which one breaks: `supervised("raise:1:3", out)`, not yet waited for.

    `recoveries`: how often they may be started again.
    """

    def begin(broken, out, *more, recoveries=0):
        arguments = generate(out, "--nproc", 2, "--set", f"runtime.recoveries={recoveries}", *more)
        if request.param == "started":
            return start(sys.executable, HERE / "supervised.py", *arguments, BROKEN=broken, **PATHS)
        environment = {**command[1], "FAULTS": str(tmp_path), "BROKEN": broken, **PATHS}
        begun.append(Forked(arguments, environment, tmp_path))
        return begun[-1]

    return begin


@pytest.fixture
def torchrun(start):
    """`torchrun(ranks, script or -m module, *arguments)`, waited for."""

    def run(ranks, *call, **environment) -> Ended:
        launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", ranks)
        return finish(start(*launcher, *call, **environment))

    return run


def pids(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in folder.glob("pid*")]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except FileNotFoundError:
        return False
    return state != "Z"  # a zombie is dead, but its parent has not asked


def gone(folder: Path, ranks: int, patience: float = 20) -> bool:
    """Whether all ranks have started and ended."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and any(map(alive, pids(folder))):
        time.sleep(0.05)
    return len(pids(folder)) == ranks and not any(map(alive, pids(folder)))


def wait_for(path: Path, process: subprocess.Popen | Forked) -> None:
    deadline = time.monotonic() + LIMIT
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
