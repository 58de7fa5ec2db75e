"""The command line, a short file per command. `main` is `jano-dist`.

Nothing is imported here but what Python has loaded already, so that Ctrl-C is answered from the start.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = "interrupted: nothing was written"


def main() -> None:
    """Run a command. Exit code 0: done; 1: it failed; 2: bad input; 130: interrupted; 143: terminated."""
    started = time.monotonic()
    with ending_at_once():
        from jano_dist.cli.app import run as command
        from jano_dist.gang import enlist
    code = command(sys.argv[1:], started=started, begin=enlist)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to interrupt
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run a command line in this process and return its exit code; see `jano_dist.cli.app.run`."""
    from jano_dist.cli.app import run as command

    return command(arguments, started=time.monotonic())


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Ctrl-C ends the process at once, while libraries are imported: nothing is begun yet, and several
    of them swallow a KeyboardInterrupt, or make another error of it."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else whoever started or uses us wants it otherwise
        signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, before)


def _end(number: int, frame: object) -> None:
    os.write(2, f"jano-dist: {INTERRUPTED}\n".encode())
    os._exit(130)
