"""The supervisor with a gang that is not there: how often it starts again, and what it says and notes."""

import json
import signal
import time
from datetime import timedelta

import pytest

from jano_dist.errors import RunError, UserError
from jano_dist.gang import Cause, Place, Progress, claim, recoveries
from jano_dist.launchers.supervisor import Run, supervise
from jano_dist.observe import NullObserver, StepRecord


class Script:
    """A gang of two ranks that does what a list says, one entry for each start.

    An entry: what rank 1 ends with (a code, or a sentence), or a cause that it reports.
    """

    address = "127.0.0.1"

    def __init__(self, *entries):
        self.entries, self.events, self.environments = list(entries), [], []

    def start(self, arguments, environment):
        from torch.distributed import PrefixStore, TCPStore

        self.environments.append(dict(environment))
        self.events.append("start")
        self.entry = self.entries.pop(0)
        self.told = False
        port = int(environment["MASTER_PORT"])
        self.connect = lambda: PrefixStore(
            "jano_dist",
            TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=5)),
        )

    def ended(self):
        if self.told:
            return {}
        self.told = True
        store = self.connect()
        self.seen = recoveries(store)
        progress = Progress(NullObserver(), store, Place(0, 0, 2, 2))
        step = 4 if len(self.environments) > 1 else 0
        for index in (step, step + 1):
            progress.step(StepRecord(index, "full", 1, 1, 0.0, 0.0, 0), 9)
        if isinstance(self.entry, Cause):
            claim(store, self.entry)
            return {1: self.entry.code}
        return {0: 0, 1: self.entry}

    def last_words(self, rank):
        return [f"word of {rank}"]

    def end(self):
        self.events.append("end")

    def close(self):
        self.events.append("close")


def run(gang, most=2):
    said = []
    try:
        supervise(gang, ["generate"], Run(2, most, 60, said.append))
    except (UserError, RunError) as error:
        return said, error
    return said, None


def test_ends_well():
    gang = Script(0)
    assert run(gang) == ([], None)
    assert gang.events == ["start", "end", "close"]
    assert gang.seen == []


def test_starts_again_as_often_as_it_may():
    gang, began = Script(-signal.SIGKILL, 3, 0), time.time()
    said, error = run(gang)
    launched = [float(each["JANO_DIST_LAUNCHED"]) for each in gang.environments]
    assert began <= launched[0] < launched[1] < launched[2] <= time.time()
    assert error is None
    assert gang.events == ["start", "end"] * 3 + ["close"]
    assert [each["JANO_DIST_ATTEMPT"] for each in gang.environments] == ["0", "1", "2"]
    assert len({each["MASTER_PORT"] for each in gang.environments}) >= 2  # another store each time
    assert said[0] == "rank 1 said: word of 1"
    assert "rank 1 was killed by signal SIGKILL" in said[1]
    assert said[1].endswith("starting all ranks again (1 of 2)")
    assert said[3].endswith("starting all ranks again (2 of 2)")
    # What the last start was told: the first recovery whole, of the second what is known before a step.
    first, second = gang.seen
    assert (first["attempt"], first["rank"], first["finished"], first["step"]) == (1, 1, 2, 4)
    assert first["ended"] < first["resumed"] < second["ended"]
    assert (second["attempt"], second["finished"]) == (2, 6)
    assert "step" not in second


def test_gives_up():
    gang = Script(5, 5, 5)
    said, error = run(gang)
    assert type(error) is RunError
    assert str(error).startswith("rank 1 ended with exit code 5")
    assert len([line for line in said if "starting" in line]) == 2


@pytest.mark.parametrize(
    ("cause", "error"),
    [
        (Cause(1, 2, "frames 4", final=True), UserError),
        (Cause(1, 1, "the disk is full", final=True), RunError),
    ],
)
def test_does_not_repeat_what_cannot_help(cause, error):
    gang = Script(cause)
    _, raised = run(gang)
    assert (type(raised), str(raised)) == (error, cause.sentence)
    assert gang.events == ["start", "end", "close"]


def test_none_allowed():
    _, error = run(Script(1), most=0)
    assert "exit code 1" in str(error)


def test_a_lost_node():
    said, _ = run(Script("the node 10.0.0.2 was lost", 0))
    assert "rank 1 is gone: the node 10.0.0.2 was lost; starting all ranks again (1 of 2)" in said[1]


def test_rows_are_json():
    gang = Script(1, 0)
    run(gang)
    assert json.loads(json.dumps(gang.seen)) == gang.seen


class Ears:
    def __init__(self):
        self.heard = []

    def step(self, record):
        self.heard.append(record["index"])

    def recovery(self):
        self.heard.append("again")


def test_ears_hear_every_step_once():
    ears = Ears()
    supervise(Script(1, 0), ["generate"], Run(2, 2, 60, lambda line: None, ears))
    assert ears.heard == [0, 1, "again", 4, 5]
