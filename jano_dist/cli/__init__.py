"""The command line, a short file per command. `main` is `jano-dist`.

Nothing is imported here that takes a while, so that Ctrl-C is answered from the start.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from jano_dist.libraries import uncollected

INTERRUPTED = "interrupted: nothing was written"


def main() -> None:
    """Run a command. Exit code 0: done; 1: it failed; 2: bad input; 130: interrupted; 143: terminated."""
    started = time.monotonic()
    with importing():
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
def importing() -> Iterator[None]:
    """Around imports that take seconds: Ctrl-C ends the process at once, since nothing is begun yet, and
    several libraries swallow a KeyboardInterrupt, or make another error of it."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else whoever started or uses us wants it otherwise
        signal.signal(signal.SIGINT, _end)
    try:
        with uncollected():
            yield
    finally:
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, before)


def _end(number: int, frame: object) -> None:
    os.write(2, f"jano-dist: {INTERRUPTED}\n".encode())
    os._exit(130)
