"""Ctrl-C and SIGTERM in a process that waits for others: held back, and obeyed where it looks for them."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = {signal.SIGINT, signal.SIGTERM}


@contextmanager
def held(*numbers: signal.Signals) -> Iterator[None]:
    """Hold signals back, so that they strike only where they are looked for; children inherit it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def striking() -> Iterator[None]:
    """Let signals that are held back strike at once."""
    struck: list[int] = []

    def strike(number: int, frame: object) -> None:
        struck.append(number)
        _raise(number)

    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    handlers = [(number, signal.signal(number, strike)) for number in heard]
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers:
            signal.signal(number, handler)
    if struck:  # a library's bare `except` may have swallowed it
        _raise(struck[0])


def obey() -> None:
    """Raise what a signal that is held back and has come asks for.

    Raises:
        KeyboardInterrupt: Ctrl-C. SystemExit: SIGTERM; with code 143.
    """
    for number in signal.sigpending() & SIGNALS:
        signal.sigwait({number})  # taken, or it would strike again when it is no longer held
        _raise(number)


def _raise(number: int) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
