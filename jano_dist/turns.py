"""Two forwards on one rank take turns: what one exchanges with other ranks travels while the other computes.

    first   | compute | begin exchange |                          | wait, compute | begin exchange |
    second                             | compute | begin exchange |                               | wait ...

Each has a thread, but only the one whose turn it is runs, and turns change only where an exchange has been
begun: so collectives come in the same order on every rank, and nothing runs beside anything else.
"""

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


class Abandoned(BaseException):
    """Another task failed; no error of the one in which it is raised."""


class Turns:
    """Turns of some tasks, of which the first runs in the thread that calls `run`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._gates: list[threading.Semaphore] = []  # open where it is that task's turn
        self._turn, self._waiting = 0, list[int]()  # whose turn it is, and whose come next
        self._failed = False

    def pass_on(self) -> None:
        """Let the next task run; back when the others have passed on, or ended.

        Raises:
            Abandoned: another task failed meanwhile.
        """
        if not self._waiting:
            return
        own = self._turn
        self._waiting.append(own)
        self._next()
        self._await(own)
        if self._failed:
            raise Abandoned

    def run(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        """What the tasks return, in order.

        Raises:
            BaseException: what the first of them that fails raises, when all have ended.
        """
        results: dict[int, T] = {}
        errors: list[BaseException] = []

        def work(index: int) -> None:
            try:
                if not self._failed:
                    results[index] = tasks[index]()
            except Abandoned:
                pass
            except BaseException as error:  # what a signal raises in the first thread, too
                errors.append(error)
                self._failed = True
            if self._waiting:
                self._next()

        self._gates = [threading.Semaphore(0) for _ in tasks]
        self._turn, self._waiting, self._failed = 0, list(range(1, len(tasks))), False
        threads = [threading.Thread(target=self._aside, args=(work, index)) for index in self._waiting]
        for thread in threads:
            thread.start()
        work(0)
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return [results[index] for index in range(len(tasks))]

    def _aside(self, work: Callable[[int], None], index: int) -> None:
        self._await(index)
        if self._device.type == "cuda":  # which is a thread's own setting, as inference mode is
            torch.cuda.set_device(self._device)
        with torch.inference_mode():
            work(index)

    def _next(self) -> None:
        self._turn = self._waiting.pop(0)
        self._gates[self._turn].release()

    def _await(self, own: int) -> None:
        """Until it is that task's turn. What a signal raises waits until then, since another one runs."""
        interruption: BaseException | None = None
        while True:
            try:
                self._gates[own].acquire()
                break
            except BaseException as error:
                interruption = error
        if interruption is not None:
            raise interruption
