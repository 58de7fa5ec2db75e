"""The supervisor of a gang: starts its ranks, watches them, ends them all when one fails, starts them again.

It hosts the store through which the ranks find each other, so that there is one port that is open already,
and so that ranks notice when it is gone. How ranks are started, ended and placed is a `Gang`'s affair.
"""

import json
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from jano_dist.errors import RunError, UserError
from jano_dist.gang import (
    ATTEMPT,
    LAUNCHED,
    Cause,
    behind,
    cause_of,
    claim,
    finished_steps,
    first_step,
    shared,
    step_records,
    where,
)
from jano_dist.launchers.signals import held, obey, striking

if TYPE_CHECKING:  # torch takes seconds; the ranks should be started by then
    from torch.distributed import Store

    from jano_dist.watch import Signs

LOOPBACK = "127.0.0.1"

POLL = 0.02  # seconds from one look at the ranks to the next
_LOOK = 1.0  # seconds from one look for their signs of life to the next


class Gang(Protocol):
    """Ranks that can be started, again and again, and ended."""

    address: str  # of this machine, as the ranks reach it

    def start(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start all ranks with a command line; `environment` says where the store is."""

    def ended(self) -> Mapping[int, int | str]:
        """Exit codes of ranks that have ended since it was asked last; a negative one is a signal. Or a
        sentence, where there is none."""

    def last_words(self, rank: int) -> Sequence[str]:
        """What a rank said last, where the user has not seen it."""

    def end(self) -> None:
        """End the ranks that are left, and wait until they are gone."""

    def close(self) -> None:
        """Give back everything."""


@dataclass(frozen=True)
class Run:
    """What a supervisor must know of a run.

    Attributes:
        ranks: of the gang.
        recoveries: how often it may start the ranks again.
        stall_seconds: without a sign of life a rank is taken for dead.
        say: told a line on every recovery.
        ears: told of every step, and of every recovery.
    """

    ranks: int
    recoveries: int
    stall_seconds: float
    say: Callable[[str], object]
    ears: "Ears | None" = None


class Ears(Protocol):
    """Hears of a run from outside, such as what shows it to Prometheus."""

    def step(self, record: Mapping[str, Any]) -> object:
        """A step has ended; the coordinator's `StepRecord` as a mapping."""

    def recovery(self) -> object:
        """The ranks are started again."""


def supervise(gang: Gang, arguments: Sequence[str], run: Run) -> None:
    """Run a command line on all ranks and wait for them; however it ends, none of them is left.

    Call it from the main thread: only that one is told of signals, and ranks die with the thread that
    started them.

    Raises:
        UserError, RunError: why the first rank failed, when starting again did not help or would not.
        KeyboardInterrupt: Ctrl-C.
        SystemExit: SIGTERM; with code 143.
    """
    with held(signal.SIGINT, signal.SIGTERM), closing(Supervised(gang, arguments, run)) as supervised:
        while cause := _ending(supervised):
            if cause.final or len(supervised.recoveries) > run.recoveries:
                raise (UserError if cause.code == 2 else RunError)(cause.sentence)
            which = f"{len(supervised.recoveries)} of {run.recoveries}"
            run.say(f"{cause.sentence}; starting all ranks again ({which})")


def _ending(supervised: "Supervised") -> Cause | None:
    """Start the ranks, wait until they end, and say why they failed."""
    supervised.start()
    try:
        while supervised.look():
            obey()
            time.sleep(POLL)
    finally:
        supervised.end()
    return supervised.cause


class Supervised:
    """A gang that is started as often as one likes, and looked at in between.

    Attributes:
        store: of the present start.
        cause: why that failed; None while it goes on, and when it has ended well.
        recoveries: rows of run.json's `recoveries`, one for each start that failed.
    """

    store: "Store"

    def __init__(self, gang: Gang, arguments: Sequence[str], run: Run) -> None:
        self._gang, self._arguments, self._run = gang, arguments, run
        self._running, self._look_at = 0, 0.0
        self.cause: Cause | None = None
        self.recoveries: list[dict[str, Any]] = []

    def start(self) -> None:
        """Start all ranks, with a store of their own."""
        self.cause, self._running, starts = None, self._run.ranks, len(self.recoveries)
        self._told = 0  # records that the ears have heard
        if starts and self._run.ears:
            self._run.ears.recovery()
        try:
            with socket.create_server((self._gang.address, 0)) as listener:
                environment = {
                    "MASTER_ADDR": self._gang.address,
                    "MASTER_PORT": str(listener.getsockname()[1]),
                    "TORCHELASTIC_USE_AGENT_STORE": "True",  # no rank hosts the store
                    ATTEMPT: str(starts),
                    LAUNCHED: str(time.time()),
                }
                self._gang.start(self._arguments, environment)
                self.store = _host(listener)
            self.store.set("recoveries", json.dumps(self.recoveries))
            self._signs = _signs(self.store, self._run)
        except BaseException:
            self._gang.end()
            raise

    def look(self) -> bool:
        """Whether the ranks go on: none has failed, and some have not ended."""
        for rank, code in self._gang.ended().items():
            self._running -= 1
            if code and self.cause is None:
                self.cause = claim(self.store, _death(self.store, rank, code, self._run.ranks))
        if self.cause is None and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK
            self._tell()
            silent = self._signs.silent()
            self.cause = claim(self.store, silent) if silent else cause_of(self.store)
        return self._running > 0 and self.cause is None

    def end(self) -> None:
        """End the ranks that are left; where they failed, note it among the recoveries."""
        noticed = time.time()
        self._gang.end()
        self._tell()
        if self.recoveries:
            self.recoveries[-1] |= first_step(self.store)
        if self.cause:
            for line in self._gang.last_words(self.cause.rank):
                self._run.say(f"rank {self.cause.rank} said: {line}")
            known = {"sentence": self.cause.sentence, "rank": self.cause.rank, "ended": noticed}
            known["finished"] = finished_steps(self.store)
            self.recoveries.append({"attempt": len(self.recoveries) + 1, **known})

    def close(self) -> None:
        """Give back everything."""
        self._gang.close()

    def _tell(self) -> None:
        if self._run.ears:
            records = step_records(self.store)
            for record in records[self._told :]:
                self._run.ears.step(record)
            self._told = len(records)


def _signs(store: "Store", run: Run) -> "Signs":
    from jano_dist.watch import Signs

    return Signs(store, range(run.ranks), run.stall_seconds)


def _host(listener: socket.socket) -> "Store":
    """The store on a socket that is open already, so that its port is nobody else's; on no other address."""
    with striking():  # this takes seconds
        from torch.distributed import TCPStore

    address, port = listener.getsockname()[:2]
    return shared(
        TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    )


def _death(store: "Store", rank: int, code: int | str, ranks: int) -> Cause:
    """What to say of a rank that ended, if it said nothing itself."""
    if isinstance(code, str):
        return Cause(rank, 1, f"rank {rank} is gone{where(store, rank)}: {code}")
    place, last = where(store, rank), behind(store, rank, ranks)
    if -code == signal.SIGABRT and last is not None:  # NCCL's watchdog, whose rank is only the messenger
        messenger = f"rank {rank} was ended by signal SIGABRT{place} while it waited"
        return Cause(last, 1, f"rank {last} hangs{where(store, last)}: {messenger}, so see what both said")
    if code > 0:
        return Cause(rank, 1, f"rank {rank} ended with exit code {code}{place}: see its output above")
    name = signal.Signals(-code).name
    said = f"rank {rank} was killed by signal {name}{place}"
    if -code == signal.SIGKILL:
        advice = "if memory ran out (`dmesg` says so), use fewer ranks or a smaller video"
    else:
        advice = "see its output above, if it left any, or find out who sent the signal"
    return Cause(rank, 1, f"{said}: {advice}")
