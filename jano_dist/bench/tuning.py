"""The tuning itself: measure what the search asks for, as long as there is time. No torch.

Every rank runs the same loop; the coordinator alone searches, looks at the clock and writes, and tells the
others a number.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, Protocol

from jano_dist.bench.search import FULL, Candidate, Search, Target, Task, rungs
from jano_dist.bench.space import Prediction, affordable, prune, spread
from jano_dist.bench.tune_state import Run, TuneFolder, TuneState

_END, _FORETELL, _FULL = -2, -1, 0  # numbers that are no candidate's; candidates count from 1
_SHOWN = 2  # prompts on the page
_RESERVED = 1 / 3  # of the budget, at most, for prompts that are held out


class Runner(Protocol):
    """Makes videos. On several ranks all call it together."""

    def agree(self, *numbers: int) -> tuple[int, ...]:
        """The coordinator's numbers, on every rank; it may have been busy for long."""

    def full(self, prompt: int) -> Mapping[str, Any]:
        """Make a full run; see `Run.outcome`."""

    def measure(self, candidate: Candidate, prompt: int) -> Mapping[str, Any]:
        """Make a candidate's video and compare it with the full one; see `Run.outcome`."""

    def predict(
        self, candidates: Sequence[Candidate], prompts: Sequence[int]
    ) -> tuple[dict[str, Prediction], dict[str, str]]:
        """What full runs foretell of candidates; and name -> reason of those that do not fit the video."""


class Board(Protocol):
    """Shows how it goes."""

    def task(self, task: Task, done: int, left: float | None) -> None:
        """A measurement begins; so many are done, and so many seconds are left, where they are limited."""

    def ran(self, run: Run) -> None:
        """A measurement has ended."""

    def say(self, line: str) -> None:
        """Something worth a line."""


class Tuning:
    """One call of the command.

    Args:
        runner: makes videos.
        candidates: all there are, the same on every rank.
        folder, state: the coordinator's; None on other ranks.
        prompts: how many. target: what is asked for.
        seconds: the budget of all calls together; None: no limit.
        board: is told what goes on. clock: seconds; it began when this call did.
    """

    def __init__(
        self,
        runner: Runner,
        candidates: Sequence[Candidate],
        *,
        prompts: int,
        target: Target,
        board: Board,
        folder: TuneFolder | None = None,
        state: TuneState | None = None,
        seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        began: float | None = None,
    ) -> None:
        self._runner, self._all, self._prompts = runner, list(candidates), prompts
        self._target, self._board, self._folder = target, board, folder
        self._state, self._seconds, self._clock = state, seconds, clock
        self._began = clock() if began is None else began
        self._before = state.spent if state else 0.0
        self._over = False  # no time is left for choosing
        self._foretold = False
        self._search: Search | None = None

    def run(self) -> None:
        """Measure until nothing is left to do, or no time to do it."""
        while True:
            number, prompt = self._runner.agree(*(self._next() if self._state else (0, 0)))
            if number == _END:
                return
            began = self._clock()
            if number == _FORETELL:
                self._foretell()
                continue
            name = FULL if number == _FULL else self._all[number - 1].name
            outcome = (
                self._runner.full(prompt)
                if number == _FULL
                else self._runner.measure(self._all[number - 1], prompt)
            )
            self._note(name, prompt, outcome, self._clock() - began)

    @property
    def search(self) -> Search:
        """The coordinator's: of the candidates that are worth trying, once they are known."""
        if self._search is None:
            self._search = Search(self._worth_trying(), self._prompts, self._target)
        return self._search

    @property
    def out_of_time(self) -> bool:
        """The coordinator's: whether the budget ended the search."""
        return self._over

    def shown(self, seeds: Sequence[int]) -> tuple[list[Candidate], list[int]]:
        """What a page is to show, on every rank: the choice and the best control, on prompts with one seed,
        held out where there are such; nothing where nothing was chosen, or there is no time.

        Args:
            seeds: of every prompt.
        """
        wanted = [_END, _END]
        divided = Search([], self._prompts, self._target)
        of = divided.held or divided.tuning
        prompts = [prompt for prompt in of if seeds[prompt] == seeds[of[0]]][:_SHOWN]
        if self._state and self._state.predictions:
            names, log = [each.name for each in self._all], self._state.log()
            found = [self.search.best(log), self.search.best_control(log)]
            cost = sum(self._cost(name) for name in found if name) * len(prompts)
            left = self._left()
            if left is None or cost <= left:
                wanted = [names.index(name) if name else _END for name in found]
        numbers = dict.fromkeys(number for number in self._runner.agree(*wanted) if number != _END)
        return [self._all[number] for number in numbers], prompts

    def _next(self) -> tuple[int, int]:
        """What the ranks do now, and on which prompt; on the coordinator."""
        state = self._known()
        log = state.log()
        if not state.predictions:
            missing = [prompt for prompt in self._first_prompts() if (FULL, prompt) not in log]
            if missing and self._has_time(Task(FULL, missing[0], 0), reserve=False):
                return self._begin(Task(FULL, missing[0], 0))
            return (_END, 0) if missing or self._foretold else (_FORETELL, 0)
        task = None if self._over else self.search.next(log)
        if task and not task.held and not self._has_time(task, reserve=True):
            self._over = True
        if self._over:
            task = self.search.next(log, over=True)
        if task is None or (task.held and not self._has_time(task, reserve=False)):
            self._over |= task is not None
            return _END, 0
        return self._begin(task)

    def _begin(self, task: Task) -> tuple[int, int]:
        self._board.task(task, len(self._known().runs), self._left())
        names = [each.name for each in self._all]
        return (_FULL if task.name == FULL else names.index(task.name) + 1), task.prompt

    def _note(self, name: str, prompt: int, outcome: Mapping[str, Any], cost: float) -> None:
        if self._state is None:
            return
        run = Run(name, prompt, cost, self._state.calls, outcome)
        self._state.runs.append(run)
        self.save()
        self._board.ran(run)

    def save(self) -> None:
        """Put what is known on the disk; on the coordinator."""
        assert self._folder is not None
        state = self._known()
        state.spent = self._elapsed()
        self._folder.save(state)

    def _foretell(self) -> None:
        self._foretold = True
        predictions, misfits = self._runner.predict(self._all, self._first_prompts())
        if self._state is not None:
            self._state.predictions, self._state.left_out = predictions, misfits
            self.save()

    def _worth_trying(self) -> list[Candidate]:
        """Those that fit, may win and for which there is time; and all that was tried."""
        state, log = self._known(), self._known().log()
        tried = {name for name, _ in log}
        fit = [each for each in self._all if each.name in state.predictions]
        reasons = prune(fit, state.predictions, self._target)
        left = spread([each for each in fit if each.name not in reasons], state.predictions)
        if self._seconds is not None:
            able = affordable(
                left,
                state.predictions,
                prompts=rungs(len(self._tuning())),
                full_cost=self._cost(FULL),
                seconds=self._seconds - self._reserve(),
            )
            reasons |= {each.name: "there is no time for it" for each in left[able:]}
        misfits = {name: why for name, why in state.left_out.items() if name not in state.predictions}
        state.left_out = {
            **misfits, **{name: why for name, why in reasons.items() if name not in tried}
        }  # fmt: skip
        kept = [each for each in left if each.name not in state.left_out]
        kept += [each for each in fit if each.name in tried and each not in kept]
        self._board.say(
            f"{len(kept)} of {len(self._all)} settings are worth trying, as far as the velocities of full "
            "runs foretell"
        )
        return kept

    def _has_time(self, task: Task, *, reserve: bool) -> bool:
        left = self._left()
        if left is None:
            return True
        return self._cost(task.name) <= left - (self._reserve() if reserve else 0)

    def _cost(self, name: str) -> float:
        """Seconds that a measurement is expected to take: as it took, or as the full run took but for the
        steps' share; 0 where nothing is known."""
        runs = self._known().runs
        own = [run.cost for run in runs if run.name == name]
        if own:
            return fmean(own)
        full = [run for run in runs if run.name == FULL]
        if not full:
            return 0.0
        cost = fmean(run.cost for run in full)
        denoise = min(cost, fmean(run.outcome["seconds"]["denoise"] for run in full))
        return cost - denoise + denoise * self._known().predictions[name].work

    def _reserve(self) -> float:
        """Seconds that are expected to be needed at the end: a full run and two others for every prompt held
        out, two for every one on the page."""
        assert self._seconds is not None
        held = self._prompts - len(self._tuning())
        return min((3 * held + 2 * _SHOWN) * self._cost(FULL), _RESERVED * self._seconds)

    def _elapsed(self) -> float:
        return self._before + self._clock() - self._began

    def _left(self) -> float | None:
        return None if self._seconds is None else self._seconds - self._elapsed()

    def _tuning(self) -> list[int]:
        return Search([], self._prompts, self._target).tuning

    def _first_prompts(self) -> list[int]:
        tuning = self._tuning()
        return tuning[: rungs(len(tuning))[0]]

    def _known(self) -> TuneState:
        assert self._state is not None
        return self._state
