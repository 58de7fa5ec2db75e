"""The timeline: what is noted, and the file it becomes, worked out by hand."""

import json
import time
from unittest import mock

import pytest

from jano_dist.clock import Span
from jano_dist.mesh import Mesh
from jano_dist.observe import StepRecord
from jano_dist.trace import Trace, begin_trace, trace_text

# Two hosts, whose own clocks began at other times: the second rank's began 0.5 s later by the wall clock.
TRACKS = [
    {
        "offset": 1_700_000_000.0,
        "events": [
            ["collective", "broadcast", 11.0, 11.25, {"sent bytes": 16}],
            ["step", "step 0 full", 11.0, 12.0, {"tokens": 4}],
            ["phase", "encode", 10.0, 11.0, {}],
            ["phase", "denoise", 11.0, 14.0, {}],
        ],
    },
    {"offset": 1_700_000_010.5, "events": [["phase", "encode", 0.0, 2.0, {}]]},
]
RECOVERY = {
    "attempt": 1,
    "sentence": "rank 1 was killed",
    "ended": 1_700_000_008.0,
    "resumed": 1_700_000_009.5,
    "step": 7,
}
# It ended before it had finished a step, a second after it was started.
AGAIN = {"attempt": 2, "sentence": "rank 0 was killed", "ended": 1_700_000_009.0}


def rows(**record):
    """Row -> its events (category, name, begin, duration, facts), in microseconds and in the file's order."""
    document = json.loads(trace_text(TRACKS, {"prompt": "a ball", **record}))
    assert document["otherData"]["prompt"] == "a ball"
    events = document["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    assert {event["pid"] for event in events} == {0}
    found = {name: [] for name in names.values()}
    for event in events:
        if event["ph"] == "X":
            times = event["ts"], event["dur"]
            found[names[event["tid"]]].append((event["cat"], event["name"], *times, event["args"]))
    return found, document["otherData"]["began"]


def test_the_file():
    """Time 0 is 10 s after the first rank's clock began; what holds others comes before them."""
    found, began = rows()
    assert found == {
        "rank 0": [
            ("phase", "encode", 0, 1e6, {}),
            ("phase", "denoise", 1e6, 3e6, {}),
            ("step", "step 0 full", 1e6, 1e6, {"tokens": 4}),
            ("collective", "broadcast", 1e6, 0.25e6, {"sent bytes": 16}),
        ],
        "rank 1": [("phase", "encode", 0.5e6, 2e6, {})],
    }
    assert began == "2023-11-14T22:13:30.000+00:00"  # 1,700,000,010 s, as `date -u` says it


def test_recoveries_have_a_row():
    found, began = rows(recoveries=[RECOVERY, AGAIN])
    assert began == "2023-11-14T22:13:28.000+00:00"  # the failure is now the first event
    assert found["recoveries"] == [
        ("recovery", "recovery 1", 0, 1.5e6, {"sentence": "rank 1 was killed", "step": 7}),
        ("recovery", "recovery 2", 1e6, 0, {"sentence": "rank 0 was killed"}),
    ]
    assert found["rank 0"][0] == ("phase", "encode", 2e6, 1e6, {})


def test_no_recoveries_no_row():
    assert rows(recoveries=[])[0].keys() == {"rank 0", "rank 1"}


class Heard:
    def __init__(self):
        self.words = []

    def phase(self, name):
        self.words.append(name)

    def step(self, record, steps):
        self.words.append((record, steps))

    def note(self, sentence):
        self.words.append(sentence)


STEP = StepRecord(3, "active", 20, 10, 0.5, 0.25, 100, began=7.0)


@pytest.mark.parametrize("asked", [True, False])
def test_what_is_heard_is_passed_on(asked):
    heard = Heard()
    observer = begin_trace(heard, asked=asked)
    observer.watch(Mesh())
    observer.phase("denoise")
    observer.step(STEP, 9)
    observer.note("the model does not know it")
    assert heard.words == ["denoise", (STEP, 9), "the model does not know it"]


class Spans(Mesh):
    """Whose collectives are made up."""

    def __init__(self, *spans):
        super().__init__()
        self.spans = list(spans)

    def take_spans(self):
        spans, self.spans = self.spans, []
        return spans


def test_what_a_rank_notes():
    began = time.time()
    trace, mesh = Trace(Heard()), Spans(Span("broadcast", 6.0, 6.5, 8))
    trace.phase("load")
    trace.watch(mesh)
    trace.phase("denoise")
    trace.step(STEP, 9)
    mesh.spans.append(Span("wait ulysses", 7.0, 7.25, 0))
    (track,) = trace.gather()
    ended = time.time()
    noted = {
        category: [e[1:] for e in track["events"] if e[0] == category] for category, *_ in track["events"]
    }
    assert noted["collective"] == [
        ["broadcast", 6.0, 6.5, {"sent bytes": 8}],
        ["wait ulysses", 7.0, 7.25, {"sent bytes": 0}],
    ]
    facts = {"tokens": 20, "own tokens": 10, "sent bytes": 100}
    assert noted["step"] == [["step 3 active", 7.0, 7.5, facts]]
    (load, start, middle, _), (denoise, again, end, _) = noted["phase"]
    assert (load, denoise) == ("load", "denoise")
    times = [time + track["offset"] for time in (start, middle, again, end)]
    assert began - 1e-3 <= times[0] <= times[1] <= times[2] <= times[3] <= ended + 1e-3


def test_nobody_asked():
    """Nothing is noted, and the mesh is not even told."""
    observer, mesh = begin_trace(Heard(), asked=False), mock.Mock()
    observer.watch(mesh)
    assert observer.gather() == []
    assert mesh.mock_calls == []
