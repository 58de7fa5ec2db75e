"""What a comparison says while it goes on: a bar on a terminal, a line for each video that is done."""

import math
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:  # they import torch
    from jano_dist.bench.outcome import Outcome
    from jano_dist.observe import StepRecord

_SHOWN = 40  # signs of a prompt


class Meter:
    """Observer of all runs, and the comparison's listener.

    Args:
        videos: to be made in all. done: of them already.
    """

    def __init__(self, console: Console, videos: int, done: int) -> None:
        self._console, self._videos, self._done = console, videos, done
        self._noted: set[str] = set()
        self._progress = Progress(
            TextColumn("{task.completed}/{task.total} videos"), BarColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[at]}"), console=console, transient=True,
            disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._progress.add_task("", total=videos, completed=done, at="load")
        self._case = ""

    def __enter__(self) -> "Meter":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)

    def phase(self, name: str) -> None:
        self._progress.update(self._task, at=f"{self._case} {name}".strip())

    def step(self, record: "StepRecord", steps: int) -> None:
        self._progress.update(self._task, at=f"{self._case} step {record.index + 1} of {steps}".strip())

    def note(self, sentence: str) -> None:
        if sentence not in self._noted:  # each run of a prompt would say it again
            self._noted.add(sentence)
            print(f"jano-dist: note: {sentence}", file=sys.stderr)

    def begin(self, case: str, prompt: str, seed: int) -> None:
        self._case = f"{case}:"

    def done(self, outcome: "Outcome") -> None:
        self._done += 1
        self._progress.update(self._task, completed=self._done)
        prompt = outcome.prompt if len(outcome.prompt) <= _SHOWN else f"{outcome.prompt[:_SHOWN]}..."
        video = f"{self._done}/{self._videos} {prompt!r}, seed {outcome.seed}, {outcome.case}"
        self.say(f"{video}: {_worth(outcome)}")


def _worth(outcome: "Outcome") -> str:
    seconds, fast = f"{outcome.seconds['denoise']:.1f} s", outcome.speedup
    if outcome.work == 1 and set(outcome.kinds) == {"full"} and outcome.psnr == math.inf:
        return seconds
    alike = "identical" if outcome.psnr == math.inf else f"{outcome.psnr:.1f} dB"
    times = f", {fast['denoise']:.2f}x" if fast else ""
    return f"{seconds}{times}, {outcome.work:.0%} of the work, {alike}"
