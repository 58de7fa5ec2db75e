"""Ranks as processes of this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from jano_dist.launchers.supervisor import LOOPBACK

Entry = tuple[str, str]  # module and function

COMMAND_LINE: Entry = ("jano_dist.cli", "main")

_GRACE = 1.0  # seconds a rank has to remove what it has half written
_POLL = 0.02
_LONGEST = 2**16  # bytes of an answer
_TAIL = 5  # lines of a failed rank
_NOTHING: Mapping[str, str] = {}


class Processes:
    """Ranks on this machine, forked from a process that has imported what they need (see zygote.py).

    Args:
        entry: what a rank runs; it finds its arguments in `sys.argv`.
    """

    def __init__(self, entry: Entry = COMMAND_LINE) -> None:
        self._entry = entry
        self._zygote: subprocess.Popen[bytes] | None = None
        self._running: set[int] = set()
        self._ended: dict[int, int] = {}

    def start(
        self, rank: int, arguments: Sequence[str], environment: Mapping[str, str], log: str | None = None
    ) -> None:
        """Start a rank; what it says goes to the file `log`, or to where this process's goes."""
        if self._zygote is None:
            self._prepare(environment)
        self._order(
            {
                "rank": rank,
                "entry": self._entry,
                "arguments": list(arguments),
                "environment": dict(environment),
                "log": log,
            }
        )
        self._running.add(rank)

    def ended(self) -> dict[int, int]:
        """Exit codes of the ranks that have ended, a negative one being a signal; each is told once."""
        if self._zygote is not None:
            self._listen()
        ended, self._ended = self._ended, {}
        return ended

    def end(self) -> None:
        """End the ranks that still run: first so that half-written files are removed, then for certain."""
        for number, patience in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, float("inf"))):
            if self._running:
                self._order({"signal": number})
            deadline = time.monotonic() + patience
            while self._running and time.monotonic() < deadline:
                time.sleep(_POLL)
                self._listen()
        self._ended = {}

    def close(self) -> None:
        """End everything."""
        if self._zygote is not None:
            self._socket.close()
            self._zygote.wait()
            self._zygote = None

    def _prepare(self, environment: Mapping[str, str]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "jano_dist.launchers.zygote", str(theirs.fileno())]
        # Or torch, asked by an import whether there is CUDA, would load its driver (see `_cuda_is_loaded`).
        own = {**environment, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        with theirs:
            self._zygote = subprocess.Popen(
                command, env=own, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )

    def _order(self, order: Mapping[str, object]) -> None:
        try:
            self._socket.send(json.dumps(order).encode())
        except OSError:
            self._lose()

    def _listen(self) -> None:
        try:
            while answer := self._socket.recv(_LONGEST, socket.MSG_DONTWAIT):
                ended = json.loads(answer)
                self._running.discard(ended["rank"])
                self._ended[ended["rank"]] = ended["code"]
            self._lose()
        except BlockingIOError:
            return
        except OSError:
            self._lose()

    def _lose(self) -> None:
        """The zygote is gone, and the kernel has ended its ranks with it."""
        self._ended |= dict.fromkeys(self._running, -signal.SIGKILL)
        self._running.clear()
        self.close()


class LocalGang:
    """A gang of `--nproc` ranks on this machine.

    Args:
        ranks: how many. entry: what they run.
        environment: theirs besides this process's own.
        logs: an existing folder for what they say, a file each; None: it goes to where this process's goes.
    """

    address = LOOPBACK

    def __init__(
        self,
        ranks: int,
        entry: Entry = COMMAND_LINE,
        *,
        environment: Mapping[str, str] = _NOTHING,
        logs: Path | None = None,
    ) -> None:
        self._ranks, self._own, self._logs = ranks, environment, logs
        self._processes = Processes(entry)
        self.ended, self.end, self.close = self._processes.ended, self._processes.end, self._processes.close

    def last_words(self, rank: int) -> list[str]:
        """The last lines that a rank said, where the user has not seen them."""
        return tail(log_file(self._logs, rank)) if self._logs else []

    def start(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start all ranks, with `environment` besides."""
        for rank in range(self._ranks):
            place = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": self._ranks,
                "LOCAL_WORLD_SIZE": self._ranks,
            }
            whole = rank_environment({**self._own, **environment, **place})
            self._processes.start(rank, arguments, whole, self._log(rank))

    def _log(self, rank: int) -> str | None:
        return None if self._logs is None else str(log_file(self._logs, rank))


def log_file(folder: Path, rank: int) -> Path:
    """Where a rank's output goes."""
    return folder / f"rank-{rank}.log"


def tail(log: Path) -> list[str]:
    """The last lines of a rank's output."""
    return log.read_text(errors="replace").splitlines()[-_TAIL:] if log.exists() else []


def rank_environment(more: Mapping[str, object]) -> dict[str, str]:
    """A rank's environment: what the user set stays, but for `more`."""
    # torchrun sets it, too: more threads than ranks can use get in each other's way.
    defaults = {"OMP_NUM_THREADS": "1"}
    return {**defaults, **os.environ, **{name: str(value) for name, value in more.items()}}
