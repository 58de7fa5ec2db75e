"""Make and compare all videos of a plan. A prompt's full run and its cases come one after the other, so that
their seconds saw the same machine."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from jano_dist.bench.cases import FULL, Case
from jano_dist.bench.folder import BenchFolder, Plan
from jano_dist.bench.outcome import Outcome
from jano_dist.bench.runs import Full, Runs
from jano_dist.config import Config
from jano_dist.engine import Generation
from jano_dist.quality import Frames, measures
from jano_dist.report import level_strip
from jano_dist.target import result_name
from jano_dist.video import write_frames

_Place = tuple[str, str, int]  # case, prompt, seed


class Listener(Protocol):
    """Hears how far the comparison is; on the coordinator."""

    def begin(self, case: str, prompt: str, seed: int) -> None:
        """This video is made now."""

    def done(self, outcome: Outcome) -> None:
        """A row is on the disk."""


def measure_all(runs: Runs, plan: Plan, folder: BenchFolder, ran: dict[str, Any], listener: Listener) -> None:
    """Make every row of the plan that the folder does not have. All ranks call it together.

    Args:
        ran: how, for the rows made now. listener: needed on the coordinator only.
    """
    _Measuring(runs, plan, folder, listener).measure(ran)


class _Measuring:
    def __init__(self, runs: Runs, plan: Plan, folder: BenchFolder, listener: Listener) -> None:
        self._runs, self._plan, self._folder, self._listener = runs, plan, folder, listener
        self._done: dict[_Place, Outcome] = {}
        self._suffix = Path(result_name(plan.config.video.frames)).suffix

    def measure(self, ran: dict[str, Any]) -> None:
        runs, plan = self._runs, self._plan
        if runs.is_coordinator:
            rows = self._folder.rows(plan)
            self._done = {place: Outcome.from_json(row) for place, row in rows.items()}
        left = {pair: self._left(*pair) for pair in plan.pairs}
        if not any(left.values()):
            return
        runs.prepare(plan.prompts)
        if runs.is_coordinator:
            self._folder.begin_session(runs.session, ran)
        runs.warm_up(plan.prompts[0])
        for (prompt, seed), names in left.items():
            if names:
                self._measure_pair(prompt, seed, names)

    def _left(self, prompt: str, seed: int) -> list[str]:
        """The rows of a prompt and seed that are not done, on every rank."""
        names = [FULL, *(case.name for case in self._plan.cases)]
        flags = self._runs.decide(*(int((name, prompt, seed) not in self._done) for name in names))
        return [name for name, flag in zip(names, flags, strict=True) if flag]

    def _measure_pair(self, prompt: str, seed: int, names: Sequence[str]) -> None:
        runs = self._runs
        self._begin(FULL, prompt, seed)
        full = runs.full(prompt, seed)
        if FULL in names and runs.is_coordinator:
            self._keep(full_outcome(runs, full, prompt, seed), full.frames, None)
        same: dict[Config, str] = {}  # what was made for a case with fewer steps -> its name
        for case in self._plan.cases:
            if case.name not in names:
                continue
            resolved = self._resolved(case, prompt, seed)
            config = resolved.config(self._plan.config)
            if case.like and config in same:
                self._copy(same[config], case.name, prompt, seed)
                continue
            self._begin(case.name, prompt, seed)
            made = runs.generate(resolved, prompt, seed)
            if runs.is_coordinator:
                self._keep(runs.compare(case, made, full), made.frames, made)
            if case.like:
                same[config] = case.name
        runs.forget(prompt, seed)

    def _copy(self, earlier: str, name: str, prompt: str, seed: int) -> None:
        """The row of a case that came to be the same run as an earlier one."""
        if self._runs.is_coordinator:
            outcome = replace(self._done[earlier, prompt, seed], case=name)
            key = self._key(earlier, prompt, seed)
            self._add(outcome, self._folder.place("videos", earlier, key, self._suffix))

    def _resolved(self, case: Case, prompt: str, seed: int) -> Case:
        """A case that is like another one, in the steps that its work is worth: the coordinator's word."""
        if case.like is None:
            return case
        steps = 0
        if self._runs.is_coordinator:
            work = self._done[case.like, prompt, seed].work
            steps = case.matched(self._plan.config, work).changes["sampling.steps"]
        (steps,) = self._runs.decide(steps)
        return case.in_steps(steps)

    def _begin(self, name: str, prompt: str, seed: int) -> None:
        if self._runs.is_coordinator:
            self._listener.begin(name, prompt, seed)

    def _keep(self, outcome: Outcome, frames: Frames, made: Generation | None) -> None:
        """The row of a video, after its files."""
        folder = self._folder
        key = self._key(outcome.case, outcome.prompt, outcome.seed)
        video, strip = folder.place("videos", outcome.case, key, self._suffix), None
        write_frames(video, frames, self._plan.config.video.fps)
        if made is not None and outcome.levels.get("active", 1.0) < 1:
            strip = folder.place("maps", outcome.case, key, ".png")
            level_strip(strip, made.levels)
        self._add(outcome, video, strip)

    def _add(self, outcome: Outcome, video: Path, strip: Path | None = None) -> None:
        folder, key = self._folder, self._key(outcome.case, outcome.prompt, outcome.seed)
        files = {"video": video, "map": strip}
        below = {name: str(path.relative_to(folder.path)) if path else None for name, path in files.items()}
        folder.add(key, self._runs.session, outcome, below)
        self._done[outcome.case, outcome.prompt, outcome.seed] = outcome
        self._listener.done(outcome)

    def _key(self, name: str, prompt: str, seed: int) -> str:
        return self._plan.key(name, prompt, seed)


def full_outcome(runs: Runs, full: Full, prompt: str, seed: int) -> Outcome:
    """The full run's own row: what it costs, and how much it flickers."""
    config = runs.base.config.model_dump(mode="json")
    steps = runs.config.sampling.steps
    return Outcome(
        case=FULL,
        prompt=prompt,
        seed=seed,
        config={**config, "sampling": {**config["sampling"], "seed": seed}},
        seconds=full.seconds,
        full_seconds=full.seconds,
        work=1.0,
        kinds=["full"] * steps,
        tokens=[1.0] * steps,
        levels={"static": 0.0, "moderate": 0.0, "active": 1.0},
        quality=dict(measures(full.frames, full.frames)),
    )
