"""What of a batch is left, who may take it, and when a job is set aside."""

from collections import deque
from collections.abc import Mapping
from typing import Any

from jano_dist.batch.folder import BatchFolder
from jano_dist.batch.plan import Job, Plan

_ATTEMPTS = 3  # as often may a job fail


class Work:
    """The jobs of a batch as its driver deals them out; what counts is on the disk before it counts here.

    Attributes:
        plan: of the batch. folder: the batch's.
        done, aside: jobs, those of earlier starts too.
    """

    def __init__(self, folder: BatchFolder, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self._failures = folder.failures()
        self.done = [job for job in plan.jobs if folder.is_done(job)]
        done = {job.id for job in self.done}
        others = [job for job in plan.jobs if job.id not in done]
        self.aside = [job for job in others if self._is_aside(job)]
        self._left = deque(job for job in others if not self._is_aside(job))
        self._taken: list[Job] = []

    @property
    def left(self) -> list[Job]:
        """Neither done nor set aside, those that are being made too."""
        return [*self._taken, *self._left]

    def take(self) -> Job | None:
        """The next job, for one gang; None where there is none now."""
        if not self._left:
            return None
        self._taken.append(self._left.popleft())
        return self._taken[-1]

    def finish(self, job: Job) -> None:
        """A job that was taken is done."""
        self._taken.remove(job)
        self.done.append(job)
        self.folder.tidy(job)

    def give_back(self, job: Job) -> None:
        """A job that was taken is to be taken again, before the others."""
        self._taken.remove(job)
        self._left.appendleft(job)

    def fail(self, job: Job, row: Mapping[str, Any], *, final: bool) -> bool:
        """An attempt failed. Returns whether the job is set aside.

        Args:
            row: of run.json's `recoveries`. final: the next attempt would fail in the same way.
        """
        number = len(self.failures(job)) + 1
        row = {**row, "attempt": number, "aside": final or number >= _ATTEMPTS}
        self.folder.note_failure(job, row)
        self._failures.setdefault(job.id, []).append(row)
        if not row["aside"]:
            self.give_back(job)
            return False
        self._taken.remove(job)
        self.aside.append(job)
        self.folder.tidy(job)
        return True

    def failures(self, job: Job) -> list[dict[str, Any]]:
        """The attempts of a job that failed: rows of its run.json's `recoveries`."""
        return self._failures.get(job.id, [])

    def _is_aside(self, job: Job) -> bool:
        return any(row["aside"] for row in self.failures(job))
