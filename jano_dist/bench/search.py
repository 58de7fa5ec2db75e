"""Which candidate to measure next on which prompt, and which of them is best. No torch, no clock.

The search is a function of what has been measured: to go on after an end is to ask it again. It halves the
candidates successively (Jamieson & Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter
optimization"): all on a few prompts, then half of them on twice as many, until the last ones were measured on
all prompts that are for choosing. The others are held out: on them the choice is only reported.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median, stdev
from typing import Literal

FULL = "full"  # the name of the run that all others are compared with
CEILING = 60.0  # dB: more counts as this, equal frames too; else one prompt would make up for bad ones
_CONTROLS_KEPT = 2  # of each family of controls, in every rung
_FIRST_RUNG = 2  # prompts
_FEW = 4  # prompts below which none is held out
_SLACK = 3.0  # dB: how far one prompt's PSNR may be from the mean of many

Speed = Literal["wall", "work"]


@dataclass(frozen=True)
class Candidate:
    """A setting that may win.

    Attributes:
        name: unique. family: of settings of the same kind, such as all of one policy.
        changes: config key -> value, of what differs from the config that is tuned.
        control: of a plain kind that cleverer ones must beat.
    """

    name: str
    family: str
    changes: Mapping[str, object] = field(default_factory=dict)
    control: bool = False


@dataclass(frozen=True)
class Target:
    """What is asked for: a least `psnr` in dB, or a least `speedup` over the full runs.

    Attributes:
        by: what counts as speed: seconds on the wall, or counted work.
    """

    psnr: float | None = None
    speedup: float | None = None
    by: Speed = "wall"


@dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        seconds: of denoising. work: counted FLOPs over the full run's.
        psnr: dB against the full run of the same prompt, at most `CEILING`.
        cost: seconds that the measurement took of the budget.
    """

    seconds: float
    work: float
    psnr: float
    cost: float


# (candidate, prompt) -> what came out. Prompts are numbered as in the file, from 0.
Log = Mapping[tuple[str, int], Measured]


@dataclass(frozen=True)
class Standing:
    """A candidate over some prompts.

    Attributes:
        prompts: how many. wall, work: speed-up over the full runs of the same prompts.
        mean, median, worst: PSNR, dB. error: the mean's standard error, dB; 0 for one prompt.
    """

    prompts: int
    wall: float
    work: float
    mean: float
    median: float
    worst: float
    error: float


@dataclass(frozen=True)
class Task:
    """What to measure next; `held` tells the prompts that are held out from those for choosing."""

    name: str
    prompt: int
    rung: int
    held: bool = False


def stand(log: Log, name: str, prompts: Sequence[int]) -> Standing | None:
    """How a candidate stands on those of the prompts that it was measured on; None where there are none."""
    own = [(log[name, prompt], log[FULL, prompt]) for prompt in prompts if (name, prompt) in log]
    if not own:
        return None
    decibels = [each.psnr for each, _ in own]
    return Standing(
        prompts=len(own),
        wall=fmean(full.seconds for _, full in own) / fmean(each.seconds for each, _ in own),
        work=1 / fmean(each.work for each, _ in own),
        mean=fmean(decibels),
        median=median(decibels),
        worst=min(decibels),
        error=stdev(decibels) / math.sqrt(len(own)) if len(own) > 1 else 0.0,
    )


def divide(prompts: int) -> tuple[list[int], list[int]]:
    """Prompts for choosing and prompts held out: every second one, or none where there are few."""
    if prompts < _FEW:
        return list(range(prompts)), []
    return list(range(0, prompts, 2)), list(range(1, prompts, 2))


def rungs(tuning: int) -> list[int]:
    """How many prompts each rung measures on: twice as many each time, at the end all of them."""
    sizes = [min(_FIRST_RUNG, tuning)]
    while sizes[-1] < tuning:
        sizes.append(min(2 * sizes[-1], tuning))
    return sizes


class Search:
    """What to measure next, and what is best.

    Args:
        candidates: in the order in which they are measured.
        prompts: how many there are.
        target: what is asked for.
    """

    def __init__(self, candidates: Sequence[Candidate], prompts: int, target: Target) -> None:
        self.candidates = {each.name: each for each in candidates}
        self.tuning, self.held = divide(prompts)
        self.rungs = rungs(len(self.tuning))
        self.target = target

    def next(self, log: Log, *, over: bool = False) -> Task | None:
        """The next measurement; None where nothing is left.

        Args:
            over: no more time is left for choosing, only for the prompts that are held out.
        """
        todo = self._held_out(log) if over else self._all(log)
        return next((task for task in todo if (task.name, task.prompt) not in log), None)

    def finalists(self, log: Log) -> list[str]:
        """Candidates of the furthest rung that is known well enough to choose from."""
        alive, known = list(self.candidates), list[str]()
        for rung, size in enumerate(self.rungs):
            prompts = self.tuning[:size]
            if not all((name, prompt) in log for name in alive for prompt in prompts):
                return known or [name for name in alive if stand(log, name, prompts)]
            known = alive
            if rung < len(self.rungs) - 1:
                alive = self._survivors(alive, log, prompts)
        return [*known, *(name for name in self._second_chances(log, known) if self._whole(log, name))]

    def best(self, log: Log) -> str | None:
        """The choice; None where nothing was measured. It may miss the target: see `reaches`.

        For a PSNR: the fastest whose mean less its standard error reaches it, or if there is none the fastest
        whose mean does. The standard error is what prompts that were not tried may well differ by. For a
        speed-up: the best mean PSNR among those that are fast enough. If nothing reaches the target: what
        comes nearest.
        """
        names = self.finalists(log)
        for keen in (True, False):
            good = [name for name in names if self._reaches(log, name, keen=keen)]
            if good:
                return max(good, key=self._merit(log))
        return max(names, key=self._nearness(log), default=None)

    def best_control(self, log: Log) -> str | None:
        """What would be chosen if there were nothing but controls; None where none was measured."""
        names = [name for name in self.finalists(log) if self.candidates[name].control]
        good = [name for name in names if self._reaches(log, name, keen=False)]
        return max(good, key=self._merit(log), default=max(names, key=self._nearness(log), default=None))

    def reaches(self, log: Log, name: str) -> bool:
        """Whether a candidate reaches the target in the mean, on the prompts for choosing."""
        return self._reaches(log, name, keen=False)

    def standing(self, log: Log, name: str, *, held: bool = False) -> Standing | None:
        """How a candidate stands on the prompts for choosing, or on those held out."""
        return stand(log, name, self.held if held else self.tuning)

    def speed(self, standing: Standing) -> float:
        """What the target counts as speed."""
        return standing.wall if self.target.by == "wall" else standing.work

    def _all(self, log: Log) -> Iterator[Task]:
        """Every task in turn, as far as the log tells what comes."""
        alive = list(self.candidates)
        for rung, size in enumerate(self.rungs):
            prompts = self.tuning[:size]
            # All on one prompt before any on the next: where time ends early, all are known a little.
            for prompt in prompts:
                yield from (Task(name, prompt, rung) for name in [FULL, *alive])
            if rung < len(self.rungs) - 1:
                alive = self._survivors(alive, log, prompts)
        for name in self._second_chances(log, alive):
            yield from (Task(name, prompt, len(self.rungs) - 1) for prompt in self.tuning)
        yield from self._held_out(log)

    def _held_out(self, log: Log) -> Iterator[Task]:
        chosen = dict.fromkeys(name for name in (self.best(log), self.best_control(log)) if name)
        for prompt in self.held:
            for name in (FULL, *chosen):
                yield Task(name, prompt, len(self.rungs), held=True)

    def _second_chances(self, log: Log, alive: Sequence[str]) -> Iterator[str]:
        """Where nobody who is left reaches the target: those dropped earlier who might, one by one."""
        known = list(alive)
        while not any(self._reaches(log, name, keen=False) for name in known):
            rest = [name for name in self.candidates if name not in known]
            hopeful = [name for name in rest if self._reaches(log, name, keen=False)]
            if not hopeful:
                return
            known.append(max(hopeful, key=self._merit(log)))
            yield known[-1]

    def _whole(self, log: Log, name: str) -> bool:
        return all((name, prompt) in log for prompt in self.tuning)

    def _survivors(self, alive: Sequence[str], log: Log, prompts: Sequence[int]) -> list[str]:
        """Half of a rung: of those on or near the Pareto front the ones nearest to the target, and the best
        controls."""
        standings = {name: _known(stand(log, name, prompts)) for name in alive}
        slack, half = _SLACK / math.sqrt(len(prompts)), math.ceil(len(alive) / 2)
        gaps = {name: self._gap(name, standings) for name in alive}
        order = sorted(alive, key=lambda name: (gaps[name] > slack, self._distance(standings[name])))
        kept = set(order[:half])
        for family in {each.family for each in self.candidates.values() if each.control}:
            own = [name for name in order if self.candidates[name].family == family]
            kept.update([name for name in own if self.candidates[name].control][:_CONTROLS_KEPT])
        return [name for name in alive if name in kept]

    def _gap(self, name: str, standings: Mapping[str, Standing]) -> float:
        """dB to the Pareto front: to the best PSNR of those who are at least as fast."""
        own = standings[name]
        return max(
            other.mean - own.mean for other in standings.values() if self.speed(other) >= self.speed(own)
        )

    def _distance(self, standing: Standing) -> float:
        """From the target, in its own unit."""
        if self.target.psnr is not None:
            return abs(standing.mean - self.target.psnr)
        return abs(math.log(self.speed(standing) / self._least_speed))

    @property
    def _least_speed(self) -> float:
        assert self.target.speedup is not None
        return self.target.speedup

    def _reaches(self, log: Log, name: str, *, keen: bool) -> bool:
        standing = stand(log, name, self.tuning)
        if standing is None:
            return False
        if self.target.psnr is None:
            return self.speed(standing) >= self._least_speed
        return standing.mean - (standing.error if keen else 0) >= self.target.psnr

    def _merit(self, log: Log) -> Callable[[str], tuple[float, float]]:
        """What is best among those who reach the target."""

        def merit(name: str) -> tuple[float, float]:
            standing = _known(stand(log, name, self.tuning))
            speed = self.speed(standing)
            return (speed, standing.mean) if self.target.psnr is not None else (standing.mean, speed)

        return merit

    def _nearness(self, log: Log) -> Callable[[str], tuple[float, float]]:
        """What is best among those who do not."""

        def nearness(name: str) -> tuple[float, float]:
            standing = _known(stand(log, name, self.tuning))
            speed = self.speed(standing)
            return (standing.mean, speed) if self.target.psnr is not None else (speed, standing.mean)

        return nearness


def _known(standing: Standing | None) -> Standing:
    assert standing is not None
    return standing
