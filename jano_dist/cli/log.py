"""What a run says on the terminal while it goes on."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jano_dist.errors import RunError

if TYPE_CHECKING:  # it imports torch
    from jano_dist.observe import StepRecord


class Output:
    """A stream such as stdout; when it cannot be written to, that ends the command with one sentence."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._noticing():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._noticing():
            self._stream.flush()

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # Or Python would try again at its end, and fail with a traceback.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if isinstance(error, BrokenPipeError):  # `| head` has seen enough, and knows
                raise RunError("") from error
            reason = error.strerror or "it failed"
            raise RunError(
                f"the output cannot be written ({reason}): make room, or send it elsewhere"
            ) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Unheard(Output):
    """An `Output` whose reader may leave, or its disk be full: the run goes on without it."""

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        with suppress(RunError):
            yield


def log() -> Console:
    """The console for what a run tells while it goes on, and at its end."""
    stream: Any = Unheard(sys.stdout)
    return Console(file=stream, highlight=False, markup=False)  # sentences may quote [anything]


class Bar:
    """Observer: a progress bar on a terminal, a line now and then in a log."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[step]}"), TimeRemainingColumn(), console=console, transient=True,
            disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._progress.add_task("load", total=None, step="")  # from the first import on

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def phase(self, name: str) -> None:
        self._progress.update(self._task, description=name, step="")
        if not self._console.is_terminal:
            self._console.print(name)

    def say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)

    def note(self, sentence: str) -> None:
        print(f"jano-dist: note: {sentence}", file=sys.stderr)

    def step(self, record: "StepRecord", steps: int) -> None:
        done, text = record.index + 1, f"{record.kind}, {record.tokens} tokens"
        self._progress.update(self._task, completed=done, total=steps, step=text)
        if not self._console.is_terminal and done % max(1, steps // 10) == 0:
            self._console.print(f"step {done}/{steps}: {text}, {record.seconds:.2f} s")
