"""Signs of life, by a clock that the test sets; and what becomes of a rank that gives none."""

import os
import signal
import subprocess
import sys

import psutil
import pytest
from torch.distributed import HashStore

from jano_dist.gang import behind
from jano_dist.watch import Signs, _this_process, kill_silent


@pytest.fixture
def store():
    return HashStore()


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_silent_after_the_limit(store):
    clock = Clock()
    signs = Signs(store, range(2), 5, clock=clock)
    assert signs.silent() is None  # nobody has joined yet
    for second in range(4):
        clock.now += 2
        store.set("alive/0", str(second))
        store.set("alive/1", "once")
        cause = signs.silent()
        # Rank 1 was seen first at 102: at 106 it is 4 s, at 108 6 s without a sign.
        assert (cause is None) == (second < 3)
    assert (cause.rank, cause.code, cause.final) == (1, 1, False)
    assert cause.sentence == "rank 1 has given no sign of life for 5 s"


def test_the_sentence_says_where(store):
    clock = Clock()
    signs = Signs(store, [3], 5, clock=clock)
    store.set("alive/3", "x")
    store.set("at/3", "step 7")
    assert signs.silent() is None
    clock.now += 5.1
    assert signs.silent().sentence == "rank 3 has given no sign of life for 5 s in step 7"


def test_who_has_left_owes_no_sign(store):
    clock = Clock()
    signs = Signs(store, range(1), 5, clock=clock)
    store.set("alive/0", "left")
    assert signs.silent() is None
    clock.now += 1000
    assert signs.silent() is None


def test_only_those_asked_for(store):
    clock = Clock()
    signs = Signs(store, [0], 5, clock=clock)
    store.set("alive/1", "x")
    signs.silent()
    clock.now += 1000
    assert signs.silent() is None


@pytest.mark.parametrize(
    ("positions", "rank", "last"),
    [
        (["step 7", "step 6", "step 7"], 0, 1),
        (["step 7", "step 6", "step 5"], 1, 2),
        (["step 7", "step 6"], 1, None),
        (["step 10", "step 9"], 0, 1),  # by number, not by letter
        (["decode", "step 9"], 0, 1),
        (["encode", "load", "step 1"], 2, 1),
        (["load", None, "load"], 0, 1),
        (["step 3", "step 3"], 0, None),
        (["step 3", "step 3"], 1, None),
    ],
)
def test_behind(store, positions, rank, last):
    for number, position in enumerate(positions):
        if position:
            store.set(f"at/{number}", position)
    assert behind(store, rank, len(positions)) == last


class TestTheSilent:
    """A process that is stopped, as rank 1."""

    @pytest.fixture
    def stopped(self):
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)  # until it has
        yield process
        process.kill()
        process.wait()

    def identity(self, process, **changes):
        machine = _this_process().split()[0]
        facts = {"machine": machine, "pid": process.pid, "began": psutil.Process(process.pid).create_time()}
        return " ".join(map(str, (facts | changes).values()))

    def test_is_killed_on_this_machine(self, store, stopped):
        store.set("process/1", self.identity(stopped))
        kill_silent(store)  # nobody is silent
        assert psutil.Process(stopped.pid).status() == psutil.STATUS_STOPPED
        store.set("silent", "1")
        kill_silent(store)
        assert stopped.wait(10) == -signal.SIGKILL
        kill_silent(store)  # once more, when it is gone

    @pytest.mark.parametrize("changes", [{"machine": "elsewhere"}, {"began": 1.0}], ids=str)
    def test_another_process_of_that_number_lives(self, store, stopped, changes):
        store.set("process/1", self.identity(stopped, **changes))
        store.set("silent", "1")
        kill_silent(store)
        assert psutil.Process(stopped.pid).status() == psutil.STATUS_STOPPED

    def test_a_process_knows_itself(self):
        machine, pid, began = _this_process().split()
        assert machine
        assert (int(pid), float(began)) == (os.getpid(), psutil.Process().create_time())
