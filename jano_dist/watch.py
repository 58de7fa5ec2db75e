"""Signs of life: every rank gives some, and every rank ends when the gang has failed, whatever it is doing.

A rank's main thread may sit in a C call that no exception ends, such as waiting for a GPU that waits for a
lost peer. A thread beside it, with a connection to the store of its own, looks for the cause of a failure.
"""

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from jano_dist.gang import Cause, Place, cause_of, claim, hosts_store, is_supervised, open_store, where

if TYPE_CHECKING:
    from torch.distributed import Store

_LOOK = 0.25  # seconds from one look at the store to the next
_PAUSE = 0.02  # seconds from one look to the next while others leave
_BEAT = 1.0  # seconds from one sign of life to the next
_GRACE = 0.75  # seconds the main thread has to end by itself, once the gang has failed
_REACH = timedelta(seconds=10)
_LEFT, _SILENT = "left", "silent"


class Signs:
    """When each of some ranks gave its last sign of life, by this process's clock.

    Args:
        store: the gang's. ranks: whose signs are looked for.
        limit: seconds after which a rank that had given signs is taken for dead.
    """

    def __init__(
        self,
        store: "Store",
        ranks: Iterable[int],
        limit: float,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._ranks, self._limit, self._clock = store, list(ranks), limit, clock
        self._seen: dict[int, tuple[bytes, float]] = {}

    def silent(self) -> Cause | None:
        """A cause that names the first rank whose last sign is too old."""
        now = self._clock()
        for rank in self._ranks:
            key = f"alive/{rank}"
            if not self._store.check([key]):  # it has not joined yet: that has a time-out of its own
                continue
            sign = self._store.get(key)
            last, since = self._seen.get(rank, (b"", now))
            if sign != last:
                self._seen[rank] = (sign, now)
            elif sign != _LEFT.encode() and now - since > self._limit:
                place = where(self._store, rank)
                return Cause(rank, 1, f"rank {rank} has given no sign of life for {self._limit:g} s{place}")
        return None


def kill_silent(store: "Store") -> None:
    """Kill the rank that was taken for dead, if it is a process of this machine.

    A stopped process does not hear SIGTERM, and torchrun's agent waits half a minute before it kills one.
    """
    if store.check([_SILENT]):
        _kill_here(store.get(f"process/{store.get(_SILENT).decode()}").decode())


def _kill_here(identity: str) -> None:
    """Kill a process that `_this_process` has described, if it is one of this machine."""
    import psutil

    machine, pid, began = identity.split()
    with suppress(psutil.Error):  # it is gone
        if machine == _machine() and psutil.Process(int(pid)).create_time() == float(began):
            os.kill(int(pid), signal.SIGKILL)


def _this_process() -> str:
    """Machine, number and start: a number alone may be another process's by now."""
    import psutil

    return f"{_machine()} {os.getpid()} {psutil.Process().create_time()!r}"


def _machine() -> str:
    """Tells apart where process numbers mean something else: machines, and containers of one."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return f"{boot}.{os.stat('/proc/self/ns/pid').st_ino}"


class Watch:
    """The thread beside a rank's main thread.

    Args:
        place: of this rank. It looks at the signs of the next one, so that all are looked at.
        stall_seconds: see `Signs`.
    """

    def __init__(self, place: Place, stall_seconds: float) -> None:
        self._key, self._store = f"alive/{place.rank}", open_store(place, _REACH)
        self._place, self._limit = place, stall_seconds
        self._signs = Signs(self._store, [(place.rank + 1) % place.world], stall_seconds)
        self._store.set(f"process/{place.rank}", _this_process())
        self._host = ""  # rank 0's process, once it is known
        self._leaving = threading.Event()
        self._ear, self._bell = socket.socketpair()
        for end in (self._ear, self._bell):
            end.setblocking(False)
        self._main = threading.current_thread() is threading.main_thread()  # only that one hears signals
        if self._main:
            self._before = signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
        self._answered = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()
        threading.Thread(target=self._guard, name="guard", daemon=True).start()

    def leave(self) -> None:
        """This rank has done its part; what becomes of the others is not its concern any more.

        But the one that hosts the store stays until they have done theirs: without it they would end.
        """
        self._leaving.set()
        self._thread.join()
        if hosts_store(self._place):
            self._await_the_others()
        if self._main:
            signal.set_wakeup_fd(self._before)
        self._ear.close()
        self._bell.close()

    def _await_the_others(self) -> None:
        keys = [f"alive/{rank}" for rank in range(self._place.world)]
        signs = Signs(self._store, range(self._place.world), self._limit)
        while not all(self._store.check([key]) and self._store.get(key) == _LEFT.encode() for key in keys):
            if cause_of(self._store) or signs.silent():
                return
            time.sleep(_PAUSE)

    def _run(self) -> None:
        try:
            beat = float("-inf")
            while not self._leaving.is_set():
                if time.monotonic() >= beat + _BEAT:
                    beat = time.monotonic()
                    if not self._host and self._store.check(["process/0"]):
                        self._host = self._store.get("process/0").decode()
                    self._store.set(self._key, str(beat))
                    self._report(self._signs.silent())
                cause = cause_of(self._store)
                if cause:
                    if not is_supervised():
                        kill_silent(self._store)
                    os.kill(os.getpid(), signal.SIGTERM)
                    self._end(cause.code)
                self._answered = time.monotonic()
                if self._told_to_end():
                    self._end(128 + signal.SIGTERM)
            self._store.set(self._key, _LEFT)
        except RuntimeError:  # the store is gone, and whoever hosts it
            if not self._leaving.is_set():
                os.kill(os.getpid(), signal.SIGTERM)
                self._end(1)

    def _guard(self) -> None:
        """A store that is cut off gives neither answer nor error. The others take this rank for dead by now,
        and may have started again without it: it must not write what they write, too.

        Or it is rank 0, which hosts the store where no supervisor does, that has been stopped."""
        while not self._leaving.wait(_BEAT):
            if time.monotonic() > self._answered + self._limit:
                if self._host and not is_supervised():
                    _kill_here(self._host)
                os.kill(os.getpid(), signal.SIGTERM)
                self._end(1)

    def _report(self, silent: Cause | None) -> None:
        if silent is None:
            return
        self._store.set(_SILENT, str(silent.rank))  # before the cause, which others act on
        if claim(self._store, silent) == silent and not is_supervised():
            print(f"jano-dist: {silent.sentence}", file=sys.stderr, flush=True)

    def _told_to_end(self) -> bool:
        """Wait a moment for SIGTERM; a main thread inside a C call does not hear of it."""
        ready, _, _ = select.select([self._ear], [], [], _LOOK)
        return bool(ready) and signal.SIGTERM in self._ear.recv(4096)

    def _end(self, code: int) -> None:
        """The main thread has a moment to remove what it has half written."""
        if not self._leaving.wait(_GRACE):
            os._exit(code)
