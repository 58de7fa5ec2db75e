"""What the tests share: the command line, small runs, and model folders that may be damaged."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Before diffusers and transformers are imported: no look at the network, no chatter on stderr.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import hypothesis
import pytest
import torch

import jano_dist
from jano_dist import cli as command_line

# No example of a test is late: the machine may be busy.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

WAN_TINY = Path(jano_dist.__file__).parent / "assets" / "wan-tiny"

# 2 x 4 x 4 tokens and 12 quick steps. No enhancement: then the block that changed least is static
# and the one that changed most is active, whatever the weights are.
SMALL = """\
model: {name: wan-tiny, max_sequence_length: 32}
video: {frames: 5, height: 64, width: 64, fps: 8}
sampling: {steps: 12, guidance: 4.0}
policy:
  name: jano
  block: [1, 4, 4]
  warmup: 4
  cooldown: 2
  static_interval: 4
  moderate_interval: 2
  enhance: {strength: 0}
preset: balanced
presets:
  conservative: {static_threshold: 0.1, moderate_threshold: 0.3}
  balanced: {static_threshold: 0.2, moderate_threshold: 0.5}
  fast: {static_threshold: 0.4, moderate_threshold: 0.6}
"""


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def cli(capfd):
    """Run a command line in this process: `cli("generate", "a ball", ...) -> Result`."""

    def invoke(*arguments) -> Result:
        capfd.readouterr()
        code = command_line.run([str(argument) for argument in arguments])
        return Result(code, *capfd.readouterr())

    return invoke


@pytest.fixture(scope="session")
def command():
    """`python -m jano_dist` as a list, and the environment of a user who has set nothing."""
    unset = ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY", "TORCH_CPP_LOG_LEVEL", "PYTHONWARNINGS")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    return [sys.executable, "-m", "jano_dist"], {**environment, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def process(command):
    """The same as `cli` in a process of its own."""

    def invoke(*arguments) -> Result:
        call, environment = command
        done = subprocess.run(
            [*call, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=120
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return invoke


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    """A config file for quick runs."""
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(SMALL)
    return path


class ModelCopy:
    """A folder like wan-tiny whose files can be changed; those that are not are links to the real ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for source in WAN_TINY.rglob("*"):
            target = folder / source.relative_to(WAN_TINY)
            if source.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(source)

    def weights(self, component: str) -> Path:
        """The safetensors file of a component."""
        (file,) = (self.folder / component).glob("*.safetensors")
        return file

    def write(self, path: Path, content: bytes | str) -> None:
        """Give a file of the copy new content."""
        path.unlink(missing_ok=True)  # the link, or the real file would be written to
        path.write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.fixture
def model_copy(tmp_path_factory) -> ModelCopy:
    """A fresh copy of wan-tiny to damage."""
    return ModelCopy(tmp_path_factory.mktemp("models") / "copy")


@pytest.fixture
def unchanged():
    """`with unchanged(folder):` nothing below it, hidden or not, appears, goes or changes.

    But snapshots to go on from, which are the subject of tests/launch/test_recovery.py.
    """

    def files(folder: Path) -> dict[Path, bytes | None]:
        paths = [path for path in folder.rglob("*") if ".jano-dist-unfinished" not in str(path)]
        return {path: path.read_bytes() if path.is_file() else None for path in paths}

    @contextmanager
    def check(folder: Path) -> Iterator[None]:
        before = files(folder)
        yield
        assert files(folder) == before

    return check
