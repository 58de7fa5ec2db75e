"""The command line in processes that are forked from one which has imported everything.

They are what a user's are (a process group, signals, exit codes, streams), but begin at once.
"""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import torch

from jano_dist import cli
from jano_dist.launchers import local, zygote
from tests.gang.harness import CONTEXT


class Forked:
    """A command line, by `subprocess.Popen`'s methods. With --nproc its ranks are forked, too.

    Args:
        arguments: of `jano-dist`. environment: all of it; with BROKEN ranks break (see broken.py).
        folder: for what it says.
    """

    def __init__(self, arguments: Sequence[str], environment: dict[str, str], folder: Path) -> None:
        self._streams = [folder / f"{len(list(folder.glob('*.out')))}.{name}" for name in ("out", "err")]
        for path in self._streams:
            path.touch()
        # Not a daemon: those may have no children.
        self._process = CONTEXT.Process(target=_lead, args=(arguments, environment, self._streams))
        self._process.start()
        self.pid, self.terminate, self.kill = self._process.pid, self._process.terminate, self._process.kill

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> list[str]:
        """What it said on stdout and stderr."""
        if self.wait(timeout) is None:
            raise subprocess.TimeoutExpired("jano-dist", timeout or 0)
        return [path.read_text() for path in self._streams]


class _Zygote:
    """What the launcher takes for a `subprocess.Popen` of a zygote, which has all imports already."""

    def __init__(self, call: Sequence[str], *, env: dict[str, str], stdin: int, pass_fds: list[int]) -> None:
        (descriptor,) = pass_fds
        self._process = multiprocessing.get_context("fork").Process(target=_hatch, args=(descriptor, env))
        self._process.start()
        self.wait = self._process.join


def _lead(arguments: list[str], environment: dict[str, str], streams: Sequence[Path]) -> NoReturn:
    os.setsid()
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    local.subprocess = SimpleNamespace(Popen=_Zygote, DEVNULL=subprocess.DEVNULL)
    if "BROKEN" in environment:
        local.LocalGang = partial(local.LocalGang, entry=("tests.launch.broken", "main"))
    _live(lambda: cli.run(arguments), environment)


def _hatch(descriptor: int, environment: dict[str, str]) -> NoReturn:
    # As a program that is executed has it: the launcher's ends of sockets are not its own.
    os.closerange(3, descriptor)
    os.closerange(descriptor + 1, 1024)
    sys.argv = ["zygote", str(descriptor)]
    _live(zygote.main, environment)


def _live(command: Callable[[], int | None], environment: dict[str, str]) -> NoReturn:
    """Run a command in this environment, and end as Python would."""
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        code = command()
    except SystemExit as ending:
        code = ending.code
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)
