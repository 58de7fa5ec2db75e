"""One rank among others: its place, the store they share, and fail-stop.

Fail-stop: a rank in which anything goes wrong tells the store and ends at once. Its sockets close with it,
so no other rank waits for it until the time-out. The first report is the cause; the others follow from it.

No torch at import: a command line with a typo comes this far and should answer fast.
"""

import ctypes
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from jano_dist.errors import PeerLost, UserError

if TYPE_CHECKING:
    from torch.distributed import Store

    from jano_dist.observe import Observer, StepRecord

# Set by our launchers, which watch the ranks and speak for them: the process whose end ends a rank.
SUPERVISOR = "JANO_DIST_SUPERVISOR"
ATTEMPT = "JANO_DIST_ATTEMPT"  # how often they have been started before; torchrun has a word of its own
LAUNCHED = "JANO_DIST_LAUNCHED"  # when that was, in Unix seconds
TRACEBACK = "JANO_DIST_TRACEBACK"
_AGENT = "TORCHELASTIC_RUN_ID"  # torchrun's

_PATIENCE = timedelta(seconds=0.5)  # how long a rank that only noticed a failure waits for its cause
_REACH = timedelta(seconds=1)  # how long a failing rank tries to reach the store
_PR_SET_PDEATHSIG = 1
_PHASES = ("", "load", "encode", "step", "decode", "write")


class Stopped(BaseException):
    """SIGTERM, raised so that half-written files are removed on the way out."""


@dataclass(frozen=True)
class Place:
    """Which rank this process is: `rank` of `world`, on its machine `local_rank` of `local_world`."""

    rank: int = 0
    local_rank: int = 0
    world: int = 1
    local_world: int = 1

    @property
    def is_coordinator(self) -> bool:
        """Whether this rank writes the files and talks to the user."""
        return self.rank == 0


@dataclass(frozen=True)
class Cause:
    """Why a gang failed: which rank it was, the exit code, and a sentence for the user.

    `final`: it would fail again in the same way, so starting the ranks again is of no use.
    """

    rank: int
    code: int
    sentence: str
    final: bool = False


def find_place() -> Place:
    """Read RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE as torchrun sets them; none: one process.

    Raises:
        UserError: they are incomplete or contradict each other.
    """
    world = _number("WORLD_SIZE", 1)
    if world == 1:
        return Place()
    rank = _number("RANK", None)
    # Without the local ones all ranks are taken to be on one machine.
    place = Place(rank, _number("LOCAL_RANK", rank), world, _number("LOCAL_WORLD_SIZE", world))
    if not (0 <= rank < world and 0 <= place.local_rank < place.local_world <= world):
        raise UserError(
            f"RANK {rank} of WORLD_SIZE {world}, LOCAL_RANK {place.local_rank} of LOCAL_WORLD_SIZE "
            f"{place.local_world} is no place in a gang: start the ranks with --nproc or torchrun"
        )
    return place


def is_supervised() -> bool:
    """Whether one of our launchers has started this process; it hosts a store, also for a single rank."""
    return SUPERVISOR in os.environ


def attempt() -> int:
    """How often the ranks were started before, by our launchers or by torchrun."""
    return int(os.environ.get(ATTEMPT) or os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0)


def enlist() -> None:
    """Let SIGTERM unwind this process. A rank does not outlive its supervisor, nor leave a core dump.

    Under torchrun that is the agent, which is not named: it started this process.
    """
    supervisor = os.environ.get(SUPERVISOR)
    if (supervisor or _AGENT in os.environ) and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if supervisor and os.getppid() != int(supervisor):  # it was gone before it could be asked for
            os._exit(1)
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    signal.signal(signal.SIGTERM, _stop)
    sys.unraisablehook = _notice


def open_store(place: Place, timeout: timedelta) -> "Store":
    """Connect to the gang's store; rank 0 hosts it in its own process where no launcher does.

    Raises:
        UserError: MASTER_ADDR or MASTER_PORT is missing.
        torch.distributed.DistError: it cannot be reached within `timeout`, or hosted.
    """
    address = os.environ.get("MASTER_ADDR")
    if not address:
        raise UserError(
            "MASTER_ADDR is not set: start the ranks with --nproc or torchrun, or set it to rank 0's host"
        )
    port = _number("MASTER_PORT", None)
    deadline = time.monotonic() + timeout.total_seconds()
    if not hosts_store(place):
        _await_listener(address, port, deadline)
    return shared(_connect(address, port, hosts_store(place), timeout, deadline))


def _await_listener(address: str, port: int, deadline: float) -> None:
    """Wait until something listens. torch's own waiting hears no signals, and ends with a page of C++."""
    listens = False
    while not listens:
        try:
            patience = max(0.1, deadline - time.monotonic())
            socket.create_connection((address, port), timeout=patience).close()
            listens = True
        except OSError as error:
            if time.monotonic() > deadline:
                raise _unreachable(str(error)) from error
            time.sleep(0.1)


def _connect(address: str, port: int, hosts: bool, timeout: timedelta, deadline: float) -> "Store":
    """A thread connects, because torch waits for ever for the answer of a server that is no store."""
    from torch.distributed import TCPStore

    stores: list[Store] = []
    errors: list[Exception] = []

    def connect() -> None:
        try:
            # multi_tenant: a second call in the same process finds the first one's server.
            store = TCPStore(
                address, port, is_master=hosts, wait_for_workers=False, timeout=timeout, multi_tenant=True
            )
            stores.append(store)
        except Exception as error:
            errors.append(error)

    connecting = threading.Thread(target=connect, daemon=True)
    connecting.start()
    connecting.join(max(1.0, deadline - time.monotonic()))
    if stores:
        return stores[0]
    raise errors[0] if errors else _unreachable("what listens there gives no answer")


def _unreachable(reason: str) -> Exception:
    from torch.distributed import DistNetworkError

    return DistNetworkError(reason)


def shared(store: "Store") -> "Store":
    """Our part of a store that may be torchrun's, too.

    Every start of the ranks has a store of its own. How often they were started is no part of the name:
    torchrun's agents count that each for itself.
    """
    from torch.distributed import PrefixStore

    return PrefixStore("jano_dist", store)


def claim(store: "Store", cause: Cause) -> Cause:
    """Report why the gang fails. Returns the first report, which is another's if that came before."""
    first = json.loads(store.compare_set("cause", "", json.dumps(asdict(cause))))
    return Cause(**first)


def cause_of(store: "Store") -> Cause | None:
    """The first report of a failure, if there is one."""
    return Cause(**json.loads(store.get("cause"))) if store.check(["cause"]) else None


def where(store: "Store", rank: int) -> str:
    """How far a rank has got, for a sentence: ` in step 7`; nothing before its first phase."""
    key = f"at/{rank}"
    return f" in {store.get(key).decode()}" if store.check([key]) else ""


def behind(store: "Store", rank: int, ranks: int) -> int | None:
    """Of the ranks that have got less far than `rank`, the one that has got the least far."""

    def progress(other: int) -> tuple[int, int]:
        phase, _, step = where(store, other).removeprefix(" in ").partition(" ")
        return _PHASES.index(phase), int(step or 0)

    last = min(range(ranks), key=progress)
    return last if progress(last) < progress(rank) else None


class Progress:
    """Observer that writes to the store how far this rank has got, and passes on what it hears."""

    def __init__(self, observer: "Observer", store: "Store", place: Place) -> None:
        self._observer, self._store, self._place = observer, store, place
        self._first: dict[str, float] = {}  # the first step that this process finished

    def phase(self, name: str) -> None:
        self._at("step 0" if name == "denoise" else name)
        if name == "decode" and not self._first:  # it went on behind the last step
            self._tell({"resumed": time.time()})
        self._observer.phase(name)

    def step(self, record: "StepRecord", steps: int) -> None:
        self._at(f"step {min(record.index + 1, steps - 1)}")
        self._first = self._first or {"step": record.index, "resumed": time.time()}
        self._tell({**self._first, "finished": record.index + 1})
        if self._place.is_coordinator:
            # All stores can; torch has no type for it.
            self._store.append("records", json.dumps(asdict(record)) + "\n")  # type: ignore[attr-defined]
        self._observer.step(record, steps)

    def note(self, sentence: str) -> None:
        self._observer.note(sentence)

    def _tell(self, facts: dict[str, float]) -> None:
        if self._place.is_coordinator:
            self._store.set("steps", json.dumps(facts))

    def _at(self, position: str) -> None:
        self._store.set(f"at/{self._place.rank}", position)


def recoveries(store: "Store") -> list[dict[str, Any]]:
    """One row for each time that a launcher has started the ranks again; see docs/run-json.md."""
    rows: list[dict[str, Any]] = json.loads(store.get("recoveries")) if store.check(["recoveries"]) else []
    return [*rows[:-1], {**rows[-1], **first_step(store)}] if rows else rows


def first_step(store: "Store") -> dict[str, Any]:
    """The first `step` that the ranks finished since they were started, and when: `resumed`, Unix seconds."""
    steps = json.loads(store.get("steps")) if store.check(["steps"]) else {}
    return {key: steps[key] for key in ("step", "resumed") if key in steps}


def step_records(store: "Store") -> list[dict[str, Any]]:
    """What the coordinator has recorded of each step since the ranks were started."""
    text = store.get("records").decode() if store.check(["records"]) else ""
    return [json.loads(line) for line in text.splitlines()]


def finished_steps(store: "Store") -> int:
    """How many steps of the video were finished; 0 where no step was left to do."""
    return int(json.loads(store.get("steps")).get("finished", 0)) if store.check(["steps"]) else 0


def fail_stop(
    place: Place, error: BaseException, ending: tuple[int, str] | None, say: Callable[[str], object]
) -> NoReturn:
    """Report a failure to the gang and end this process, whatever its threads are doing.

    Args:
        place: of this rank.
        error: what ended it.
        ending: exit code and sentence; None for an error that nobody foresaw.
        say: called with a sentence if it is this rank that must say it to the user.
    """
    if isinstance(error, Stopped):  # whoever stopped it knows why
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if TRACEBACK in os.environ:
        traceback.print_exception(error)
    code, sentence = ending or (1, _unforeseen(error))
    final = ending is not None and not isinstance(error, PeerLost)
    try:
        store = open_store(place, _REACH)
        if isinstance(error, PeerLost):
            sentence = f"{sentence}{_await_cause(store, place)}"
        position = where(store, place.rank)
        cause = Cause(place.rank, code, _located(place, error, code, sentence, position), final)
        speaks = claim(store, cause) == cause
    except (RuntimeError, UserError):  # no store, so nobody knows what the others say
        cause = Cause(place.rank, code, _located(place, error, code, sentence, ""), final)
        speaks = place.is_coordinator or code == 1
    if speaks and SUPERVISOR not in os.environ:
        say(cause.sentence)
    sys.stdout.flush()
    sys.stderr.flush()
    if hosts_store(place):
        _linger()
    os._exit(code)


def _number(name: str, default: int | None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal():
        problem = "is not set" if text is None else f"is {text!r}, not a number"
        raise UserError(f"{name} {problem}: start the ranks with --nproc or torchrun, or unset WORLD_SIZE")
    return int(text)


def _stop(number: int, frame: object) -> None:
    raise Stopped


def _notice(lost: "sys.UnraisableHookArgs") -> None:
    """SIGTERM may strike in a destructor, which swallows what is raised: then it strikes again."""
    if isinstance(lost.exc_value, Stopped):
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGTERM)).start()
    else:
        sys.__unraisablehook__(lost)


def hosts_store(place: Place) -> bool:
    """Whether this rank's process hosts the gang's store; else a launcher does."""
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's word, and our launcher's
    return place.is_coordinator and not agent


def _await_cause(store: "Store", place: Place) -> str:
    """Give another rank the time to say why it failed; if none does, which of them gave no sign at all."""
    store.set(f"noticed/{place.rank}", "")
    try:
        store.wait(["cause"], _PATIENCE)
    except RuntimeError:  # nobody says anything: then this rank does
        silent = [rank for rank in range(place.world) if not store.check([f"noticed/{rank}"])]
        return f", and no sign came from rank {', '.join(map(str, silent))}" if silent else ""
    return ""


def _located(place: Place, error: BaseException, code: int, sentence: str, position: str) -> str:
    if code != 1:  # bad input, or Ctrl-C: the rank has nothing to do with it
        return sentence
    advice = ": see what became of the others, or raise runtime.timeout_seconds if they are only slow"
    return f"rank {place.rank} failed{position}: {sentence}{advice if isinstance(error, PeerLost) else ''}"


def _unforeseen(error: BaseException) -> str:
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first} (set {TRACEBACK}=1 to see where)"


def _linger() -> None:
    """The store goes with this process: let the others see that it fails, and look for the cause."""
    import torch.distributed as dist

    if dist.is_initialized():
        threading.Thread(target=dist.destroy_process_group, daemon=True).start()
    time.sleep(2 * _PATIENCE.total_seconds())
