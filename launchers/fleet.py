"""Several gangs that make the videos of a batch, looked after in one loop.

Each gang is started once and asks for one job after the other. When one of its ranks fails, it is started
again, and the job in its hands goes on from its snapshot: in the same gang, or in another that is idle.
"""

import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

from jano_dist.batch import NOTHING_LEFT, NOTHING_NOW, Job, Work, answer, asked, take_notes
from jano_dist.errors import RunError, UserError
from jano_dist.gang import Cause, where
from jano_dist.launchers.signals import held, obey
from jano_dist.launchers.supervisor import POLL, Gang, Run, Supervised

_WRITE = " in write"  # `where`, while a run folder is written


@dataclass(frozen=True)
class Sight:
    """What can be seen of a gang: its job, and how far that has got."""

    job: Job | None
    at: str  # such as `step 7`; nothing where nothing is known


def make_all(
    gangs: Sequence[Gang],
    arguments: Sequence[str],
    run: Run,
    work: Work,
    show: Callable[[Sequence[Sight]], object],
) -> None:
    """Let gangs make every job that is left; however it ends, no rank is left.

    Call it from the main thread, as `supervise`.

    Args:
        arguments: the command line of every rank.
        run: of every gang; one that fails more than `recoveries` times in a row, through no fault of a
            job's, is given up.
        work: the jobs. Written to.
        show: called between two looks at the ranks.

    Raises:
        UserError, RunError: no gang is left, or none could do better.
        KeyboardInterrupt: Ctrl-C. SystemExit: SIGTERM; with code 143.
    """
    with held(signal.SIGINT, signal.SIGTERM), ExitStack() as stack:
        members = [_Member(number, gang, arguments, run, work) for number, gang in enumerate(gangs, start=1)]
        for member in members:
            stack.enter_context(member.running())
        while any(member.goes_on for member in members):
            for member in members:
                member.look()
            show([member.sight() for member in members])
            obey()
            time.sleep(POLL)
        if work.left:
            causes = [member.cause.sentence for member in members if member.cause]
            raise RunError(f"every gang has failed too often; the last time: {causes[-1]}")


class _Member:
    """One gang among others.

    Attributes:
        goes_on: whether it makes videos, or would.
        cause: why it was given up.
    """

    def __init__(self, number: int, gang: Gang, arguments: Sequence[str], run: Run, work: Work) -> None:
        self._name, self._run, self._work = f"gang {number}", run, work
        self._supervised = Supervised(gang, arguments, run)
        self._job: Job | None = None
        self._turn, self._strikes = 0, 0
        self.goes_on = False
        self.cause: Cause | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start it, and end it at last."""
        with closing(self._supervised):
            self._start()
            try:
                yield
            finally:
                if self.goes_on:
                    self._supervised.end()

    def look(self) -> None:
        """See how it is, and give it what it asks for."""
        if not self.goes_on:
            return
        runs = self._supervised.look()
        if runs and asked(self._supervised.store, self._turn):
            self._answer()
        if not runs:
            self.goes_on = False
            self._end()

    def sight(self) -> Sight:
        """What a user may want to see of it."""
        if not self.goes_on:
            return Sight(None, "given up" if self.cause else "")
        if self._turn and not self._job:
            return Sight(None, "idle")
        return Sight(self._job, where(self._supervised.store, 0).removeprefix(" in "))

    def _start(self) -> None:
        self._turn = 0
        self._supervised.start()
        self.goes_on = True

    def _answer(self) -> None:
        store, work = self._supervised.store, self._work
        if self._job:
            self._finish(self._job)
        job = self._job = work.take()
        if job:
            store.set("recoveries", json.dumps(work.failures(job)))  # as on a start of its own
            store.set("steps", json.dumps({"finished": 0}))
            answer(store, self._turn, work.plan.jobs.index(job))
        else:
            answer(store, self._turn, NOTHING_NOW if work.left else NOTHING_LEFT)
        self._turn += 1

    def _finish(self, job: Job) -> None:
        work = self._work
        work.finish(job)
        self._job, self._strikes = None, 0
        for sentence in take_notes(self._supervised.store):
            self._run.say(f"{job.id}: note: {sentence}")
        seconds, total = work.folder.seconds(job), len(work.plan.jobs)
        self._run.say(f"{job.id}: done in {seconds:.1f} s ({len(work.done)} of {total})")

    def _end(self) -> None:
        """The ranks have ended or failed: go on, if there is something to go on with."""
        job, writing = self._job, where(self._supervised.store, 0) == _WRITE
        self._supervised.end()
        cause = self._supervised.cause
        if job and self._work.folder.is_done(job):  # it could not say so any more
            self._finish(job)
            job = None
        if not self._work.left:
            return
        cause = cause or Cause(0, 1, "its ranks ended before all was done")
        if job is None and cause.final:
            raise (UserError if cause.code == 2 else RunError)(cause.sentence)
        self._strikes += job is None or writing
        self._fail(job, cause, final=cause.final and not writing)
        if self._strikes > self._run.recoveries:
            self.cause = cause
            self._run.say(f"{self._name} is given up")
        else:
            self._start()

    def _fail(self, job: Job | None, cause: Cause, *, final: bool) -> None:
        """Say what happened; where it happened to a job, note it."""
        self._job = None
        if job is None:
            self._run.say(f"{self._name}: {cause.sentence}")
            return
        (*_, row) = self._supervised.recoveries
        aside = self._work.fail(job, row, final=final)
        number = len(self._work.failures(job))
        what = "set aside" if aside else f"attempt {number} failed"
        self._run.say(f"{job.id}: {what} ({self._name}: {cause.sentence})")
