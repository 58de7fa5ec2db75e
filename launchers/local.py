"""Ranks as processes of this machine, and a supervisor that ends them all when one fails.

The ranks see what torchrun would show them, so from then on there is one path.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jano_dist.errors import RunError, UserError
from jano_dist.gang import SUPERVISOR, Cause, claim, shared, where

if TYPE_CHECKING:  # torch takes seconds; the ranks should be started by then
    from torch.distributed import Store

COMMAND = (sys.executable, "-m", "jano_dist")

_POLL = 0.02  # seconds
_GRACE = 1.0  # seconds a rank has to remove what it has half written
_LOOPBACK = "127.0.0.1"
_SIGNALS = {signal.SIGINT, signal.SIGTERM}


def launch(ranks: int, arguments: Sequence[str], *, command: Sequence[str] = COMMAND) -> None:
    """Run a command line on several ranks and wait for them; however it ends, none of them is left.

    Call it from the main thread: only that one is told of signals, and ranks die with the thread that
    started them.

    Args:
        ranks: how many.
        arguments: what each of them is given.
        command: what takes the arguments.

    Raises:
        UserError, RunError: why the first rank failed.
        KeyboardInterrupt: Ctrl-C.
        SystemExit: SIGTERM; with code 143.
    """
    processes: list[subprocess.Popen[bytes]] = []
    # The ranks inherit that Ctrl-C is blocked: it is for the supervisor.
    with socket.create_server((_LOOPBACK, 0)) as listener, _held(signal.SIGINT):
        for rank in range(ranks):
            environment = _environment(rank, ranks, listener.getsockname()[1])
            processes.append(
                subprocess.Popen([*command, *arguments], env=environment, stdin=subprocess.DEVNULL)
            )
        with _held(signal.SIGTERM):
            try:
                _watch(processes, _host(listener))
            finally:
                _end(processes)


def _environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": ranks,
        "LOCAL_WORLD_SIZE": ranks,
        "MASTER_ADDR": _LOOPBACK,
        "MASTER_PORT": port,
        "TORCHELASTIC_USE_AGENT_STORE": True,  # no rank hosts the store
        SUPERVISOR: os.getpid(),
    }
    # torchrun sets the first, too: more threads than ranks can use get in each other's way.
    defaults = {"OMP_NUM_THREADS": "1"} | ({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {})
    return {**defaults, **os.environ, **{name: str(value) for name, value in place.items()}}


def _host(listener: socket.socket) -> "Store":
    """The store on a socket that is open already, so that its port is nobody else's; loopback only."""
    with _striking():  # this takes seconds
        from torch.distributed import TCPStore

    port = listener.getsockname()[1]
    return shared(
        TCPStore(_LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    )


def _watch(processes: Sequence["subprocess.Popen[bytes]"], store: "Store") -> None:
    """Return when all have ended well; raise when the first has not, or at a signal."""
    running = dict(enumerate(processes))
    while running:
        _obey_signals()
        for rank, process in list(running.items()):
            code = process.poll()
            if code:
                cause = claim(store, _death(store, rank, code))
                raise (UserError if cause.code == 2 else RunError)(cause.sentence)
            if code == 0:
                del running[rank]
        time.sleep(_POLL)


def _death(store: "Store", rank: int, code: int) -> Cause:
    """What to say of a rank that ended, if it said nothing itself."""
    place = where(store, rank)
    if code > 0:
        sentence = f"rank {rank} ended with exit code {code}{place}: see its output above"
    elif -code == signal.SIGKILL:
        sentence = (
            f"rank {rank} was killed by signal SIGKILL{place}: if memory ran out (`dmesg` says so), "
            "use fewer ranks or a smaller video"
        )
    else:
        sentence = (
            f"rank {rank} was killed by signal {signal.Signals(-code).name}{place}: see its output above, "
            "if it left any, or find out who sent the signal"
        )
    return Cause(rank, 1, sentence)


def _end(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """End what still runs: first so that half-written files are removed, then for certain."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + _GRACE
    while time.monotonic() < deadline and any(process.poll() is None for process in running):
        time.sleep(_POLL)
    for process in running:
        process.kill()
        process.wait()


@contextmanager
def _held(number: signal.Signals) -> Iterator[None]:
    """Hold a signal back, so that it strikes only where it is looked for."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _striking() -> Iterator[None]:
    """Let signals that are held back strike at once."""
    struck: list[int] = []

    def strike(number: int, frame: object) -> None:
        struck.append(number)
        _raise(number)

    heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    handlers = [(number, signal.signal(number, strike)) for number in heard]
    held = signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        for number, handler in handlers:
            signal.signal(number, handler)
    if struck:  # a library's bare `except` may have swallowed it
        _raise(struck[0])


def _obey_signals() -> None:
    for number in signal.sigpending() & _SIGNALS:
        signal.sigwait({number})  # taken, or it would strike again when it is no longer held
        _raise(number)


def _raise(number: int) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
