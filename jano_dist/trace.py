"""A run as a timeline: phases, steps, collectives and recoveries, a row for each rank.

The file is in the Trace Event Format of Chromium, which chrome://tracing and https://ui.perfetto.dev show.
A rank notes its events on its own monotonic clock, and once what the wall clock says then. So the events of
one rank are exact, and ranks of different hosts are aligned as well as their wall clocks are (by NTP).
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from jano_dist.clock import Span
from jano_dist.mesh import Mesh
from jano_dist.observe import Observer, StepRecord

# Category, name, began, ended, facts; seconds.
Event = tuple[str, str, float, float, dict[str, Any]]
# What a rank noted: `events` on its own clock, and the `offset` of Unix time from that.
Track = dict[str, Any]


class Trace:
    """Observer that notes when this rank's phases, steps and collectives were, and passes on what it hears.

    Collectives are noted from `watch` on; those of libraries (FSDP's, DistVAE's) are not known here.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer, self._events = observer, list[Event]()
        self._phase: tuple[str, float] | None = None
        self._spans: Callable[[], list[Span]] = list
        # Read once: a wall clock may be set while the run goes on.
        self._offset = time.time() - time.perf_counter()

    def phase(self, name: str) -> None:
        self._end_phase()
        self._phase = name, time.perf_counter()
        self._observer.phase(name)

    def step(self, record: StepRecord, steps: int) -> None:
        facts = {"tokens": record.tokens, "own tokens": record.own_tokens, "sent bytes": record.comm_bytes}
        name = f"step {record.index} {record.kind}"
        self._events.append(("step", name, record.began, record.began + record.seconds, facts))
        self._observer.step(record, steps)

    def note(self, sentence: str) -> None:
        self._observer.note(sentence)

    def watch(self, mesh: Mesh) -> None:
        """Note the collectives of `mesh`, too."""
        mesh.keep_spans()
        self._spans, self._mesh = mesh.take_spans, mesh

    def gather(self) -> list[Track]:
        """What every rank noted, on every rank; all call it, after `watch`, when the run is over."""
        self._end_phase()
        own = json.dumps({"offset": self._offset, "events": self._events})
        return [json.loads(text) for text in self._mesh.collect_bytes(own.encode())]

    def _end_phase(self) -> None:
        self._events += [
            ("collective", span.name, span.began, span.ended, {"sent bytes": span.nbytes})
            for span in self._spans()
        ]
        if self._phase:
            self._events.append(("phase", *self._phase, time.perf_counter(), {}))
        self._phase = None


def begin_trace(observer: Observer, *, asked: bool) -> "Trace | Untraced":
    """A trace that passes on what it hears to `observer`, if one is asked for."""
    return Trace(observer) if asked else Untraced(observer)


class Untraced:
    """In the place of a `Trace` where nobody asked for one: passes on what it hears, and no more."""

    def __init__(self, observer: Observer) -> None:
        self.phase, self.step, self.note = observer.phase, observer.step, observer.note

    def watch(self, mesh: Mesh) -> None:
        return

    def gather(self) -> list[Track]:
        return []


def trace_text(tracks: Sequence[Track], record: dict[str, Any]) -> str:
    """The file, as text.

    Args:
        tracks: from `Trace.gather`; not empty.
        record: what `run.json` holds. Its `recoveries`, if there are any, get a row of their own.
    """
    base = tracks[0]["offset"]  # Unix time itself is too large for nanoseconds in a float
    rows = {
        f"rank {rank}": _shifted(track["events"], track["offset"] - base) for rank, track in enumerate(tracks)
    }
    if record.get("recoveries"):
        rows["recoveries"] = _shifted([_recovery(row) for row in record["recoveries"]], -base)
    first = min(began for events in rows.values() for _, _, began, _, _ in events)
    drawn = [
        each for row, (name, events) in enumerate(rows.items()) for each in _row(row, name, events, first)
    ]
    began = datetime.fromtimestamp(base + first, UTC).isoformat(timespec="milliseconds")
    facts = {"prompt": record["prompt"], "began": began}
    return json.dumps({"traceEvents": drawn, "displayTimeUnit": "ms", "otherData": facts}) + "\n"


def _recovery(row: dict[str, Any]) -> Event:
    resumed = row.get("resumed", row["ended"])  # some fail again before they have finished a step
    facts = {key: value for key, value in row.items() if key not in ("attempt", "ended", "resumed")}
    return "recovery", f"recovery {row['attempt']}", row["ended"], resumed, facts


def _shifted(events: Sequence[Event], by: float) -> list[Event]:
    return [(category, name, began + by, ended + by, facts) for category, name, began, ended, facts in events]


def _row(row: int, name: str, events: Sequence[Event], first: float) -> Iterator[dict[str, Any]]:
    """The events of one row, those that hold others first. Microseconds since `first`, to the nanosecond."""
    place = {"pid": 0, "tid": row}
    yield {"ph": "M", "name": "thread_name", "args": {"name": name}, **place}
    yield {"ph": "M", "name": "thread_sort_index", "args": {"sort_index": row}, **place}
    for category, what, began, ended, facts in sorted(events, key=lambda event: (event[2], -event[3])):
        # Rounded before they are subtracted, so that what lies in another event still does.
        start, end = (round((moment - first) * 1e9) for moment in (began, ended))
        times = {"ts": start / 1e3, "dur": (end - start) / 1e3}
        yield {"ph": "X", "cat": category, "name": what, **times, "args": facts, **place}
