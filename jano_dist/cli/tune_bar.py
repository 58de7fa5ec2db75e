"""What a tuning says while it goes on: a bar on a terminal, a line for every measurement in a log."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from jano_dist.bench.search import FULL, Task
from jano_dist.bench.tune_state import Run

if TYPE_CHECKING:  # it imports torch
    from jano_dist.bench.outcome import Outcome
    from jano_dist.observe import StepRecord

_SHOWN = 40  # signs of a prompt


class TuneBar:
    """`tuning.Board`, and observer of every run.

    Args:
        prompts: each with its seed.
    """

    def __init__(self, console: Console, prompts: Sequence[tuple[str, int]]) -> None:
        self._console, self._prompts = console, prompts
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} steps"),
            TextColumn("{task.fields[left]}"), console=console, transient=True,
            disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._progress.add_task("load", total=None, left="")
        self._noted: set[str] = set()

    def __enter__(self) -> "TuneBar":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def task(self, task: Task, done: int, left: float | None) -> None:
        where = "held out" if task.held else f"round {task.rung + 1}"
        prompt = self._prompts[task.prompt][0][:_SHOWN]
        room = f"{done} runs done" if left is None else f"{done} runs done, {left / 60:.1f} min left"
        self._progress.reset(self._task, description=f"{where}: {task.name}: {prompt}", left=room)

    def ran(self, run: Run) -> None:
        seconds = f"{run.outcome['seconds']['whole']:.2f} s"
        what = "the full run" if run.name == FULL else run.name
        if run.name != FULL:
            seconds += f", {run.measured.work:.2f} of the work, {run.measured.psnr:.1f} dB"
        self.say(f"{what}, prompt {run.prompt + 1}: {seconds}")

    def begin(self, case: str, prompt: str, seed: int) -> None:
        self._progress.reset(self._task, description=f"page: {case}: {prompt[:_SHOWN]}", left="")

    def done(self, outcome: "Outcome") -> None:
        return

    def say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)

    def phase(self, name: str) -> None:
        if name == "load":
            self.say("load")

    def note(self, sentence: str) -> None:
        if sentence not in self._noted:  # every run of a prompt would say it again
            self._noted.add(sentence)
            print(f"jano-dist: note: {sentence}", file=sys.stderr)

    def step(self, record: "StepRecord", steps: int) -> None:
        self._progress.update(self._task, completed=record.index + 1, total=steps)
