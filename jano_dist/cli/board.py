"""What a batch says while it goes on: a table on a terminal, lines in a log."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from jano_dist.batch import Work

if TYPE_CHECKING:  # it may come after the first words
    from jano_dist.launchers.fleet import Sight

_PAUSE = 0.25  # seconds from one picture to the next
_SHOWN = 60  # signs of a prompt


class Board:
    """The live table, while it is entered; `say` works always.

    Args:
        work: of the batch. begun: `time.monotonic()` from which videos per minute count.
    """

    def __init__(self, console: Console, work: Work, begun: float) -> None:
        self._console, self._work, self._begun = console, work, begun
        self._before, self._next = len(work.done), 0.0
        # Drawn when it is told to: a thread of its own would draw while signals are held.
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> "Board":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False)

    def show(self, sights: "Sequence[Sight]") -> None:
        """Draw the table anew, not too often."""
        if self._console.is_terminal and time.monotonic() >= self._next:
            self._next = time.monotonic() + _PAUSE
            self._live.update(Group(self._table(sights), self.summary()), refresh=True)

    def summary(self) -> str:
        """How many are done, failed and left; how fast it goes, and how long it will take."""
        work, minutes = self._work, (time.monotonic() - self._begun) / 60
        new = len(work.done) - self._before
        counts = f"{len(work.done)} done, {len(work.aside)} set aside, {len(work.left)} left"
        if not new:
            return counts
        pace = f"{counts}; {new / minutes:.1f} videos per minute"
        return f"{pace}, {_duration(len(work.left) * minutes / new)} to go" if work.left else pace

    def _table(self, sights: "Sequence[Sight]") -> Table:
        table = Table("gang", "job", "at", "prompt", box=None)
        for number, sight in enumerate(sights, start=1):
            job = sight.job
            at = f"{sight.at} of {self._steps(sight)}" if sight.at.startswith("step") and job else sight.at
            name, prompt = (job.id, Text(job.prompt[:_SHOWN])) if job else ("", Text())
            table.add_row(str(number), name, at, prompt)  # a Text because [ ] in it mean nothing
        return table

    def _steps(self, sight: "Sight") -> int:
        assert sight.job is not None
        return self._work.plan.configs[sight.job.config].sampling.steps


def _duration(minutes: float) -> str:
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
