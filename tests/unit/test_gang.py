"""A rank's place, and command lines handed on to ranks."""

import signal
import subprocess
import sys
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from jano_dist.cli.ranks import without_options
from jano_dist.errors import UserError
from jano_dist.gang import Cause, Place, Progress, _await_cause, claim, find_place, where
from jano_dist.launchers import local
from jano_dist.launchers.supervisor import _death
from jano_dist.observe import NullObserver, StepRecord

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.fixture
def environment(monkeypatch):
    """`environment(RANK=..)`: that and no other place."""

    def put(**values):
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    return put


class TestFindPlace:
    @pytest.mark.parametrize("values", [{}, {"WORLD_SIZE": 1}, {"WORLD_SIZE": 1, "RANK": 0}, {"RANK": 3}])
    def test_one_process(self, environment, values):
        environment(**values)
        assert find_place() == Place(0, 0, 1, 1)
        assert find_place().is_coordinator

    def test_as_torchrun_sets_it(self, environment):
        environment(RANK=9, WORLD_SIZE=16, LOCAL_RANK=1, LOCAL_WORLD_SIZE=8)
        assert find_place() == Place(rank=9, local_rank=1, world=16, local_world=8)
        assert not find_place().is_coordinator

    def test_without_the_local_ones_all_are_on_one_machine(self, environment):
        environment(RANK=2, WORLD_SIZE=4)
        assert find_place() == Place(rank=2, local_rank=2, world=4, local_world=4)

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"WORLD_SIZE": 2}, "RANK is not set: start the ranks with --nproc or torchrun"),
            ({"WORLD_SIZE": "two", "RANK": 0}, "WORLD_SIZE is 'two', not a number"),
            ({"WORLD_SIZE": "", "RANK": 0}, "WORLD_SIZE is '', not a number"),
            ({"WORLD_SIZE": "-2", "RANK": 0}, "WORLD_SIZE is '-2', not a number"),
            ({"WORLD_SIZE": 2, "RANK": "1.0"}, "RANK is '1.0', not a number"),
            ({"WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": "x"}, "LOCAL_RANK is 'x', not a number"),
            ({"WORLD_SIZE": 2, "RANK": 2}, "RANK 2 of WORLD_SIZE 2.*is no place in a gang"),
            ({"WORLD_SIZE": 0, "RANK": 0}, "RANK 0 of WORLD_SIZE 0.*is no place"),
            ({"WORLD_SIZE": 4, "RANK": 3, "LOCAL_WORLD_SIZE": 2}, "LOCAL_RANK 3 of LOCAL_WORLD_SIZE 2"),
            (
                {"WORLD_SIZE": 2, "RANK": 1, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 8},
                "LOCAL_WORLD_SIZE 8 is no place in a gang",
            ),
        ],
    )
    def test_no_place(self, environment, values, words):
        environment(**values)
        with pytest.raises(UserError, match=words):
            find_place()

    def test_of_our_own_ranks(self, environment, monkeypatch):
        started = []
        gang = local.LocalGang(3)
        monkeypatch.setattr(gang._processes, "start", lambda *order: started.append(order))
        gang.start(["x"], {"MASTER_ADDR": "127.0.0.1"})
        for rank, (number, arguments, its, log) in enumerate(started):
            assert log is None  # what it says goes to the terminal
            assert (number, arguments) == (rank, ["x"])
            environment(**{name: its[name] for name in NAMES})
            assert find_place() == Place(rank, rank, 3, 3)
        assert len(started) == 3


def test_environment_of_a_rank(monkeypatch):
    """What the user set stays, but for the place."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("MASTER_PORT", "1")
    more = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1234}
    environment = local.rank_environment(more)
    assert environment["OMP_NUM_THREADS"] == "7"
    assert environment["MASTER_PORT"] == "1234"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert local.rank_environment(more)["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["generate", "a", "--nproc", "2", "--seed", "1"], ["generate", "a", "--seed", "1"]),
        (["generate", "a", "--nproc=2", "--seed", "1"], ["generate", "a", "--seed", "1"]),
        (["generate", "--nproc", "2"], ["generate"]),
        (["generate", "--nproc", "2", "a", "--nproc=4"], ["generate", "a"]),
        (["generate", "--nproc", "2", "a", "--nproc", "4"], ["generate", "a"]),
        (["generate", "a", "--seed", "1"], ["generate", "a", "--seed", "1"]),
        (["generate", "a", "--nprocs=2"], ["generate", "a", "--nprocs=2"]),
    ],
)
def test_without_option(arguments, kept):
    before = list(arguments)
    assert without_options(arguments, ["--nproc"]) == kept
    assert arguments == before


def test_the_first_cause_stays():
    store, first, second = HashStore(), Cause(1, 1, "boom"), Cause(0, 2, "later")
    assert claim(store, first) == first
    assert claim(store, second) == first


class Telling(HashStore):
    """A store in which another rank says why it failed while this one waits."""

    def wait(self, keys, patience):
        assert keys == ["cause"]
        assert patience >= timedelta(seconds=0.1)  # a rank on its way out needs as long as that
        claim(self, Cause(2, 1, "boom"))
        super().wait(keys, patience)


def test_a_rank_that_only_noticed_waits_for_the_cause():
    store, place = Telling(), Place(1, 1, 3, 3)
    assert _await_cause(store, place) == ""
    assert claim(store, Cause(1, 1, "contact was lost")) == Cause(2, 1, "boom")


def test_those_that_give_no_sign_are_named():
    store = HashStore()
    store.set("noticed/3", "")
    assert _await_cause(store, Place(1, 1, 4, 4)) == ", and no sign came from rank 0, 2"


def test_how_far_a_rank_has_got():
    store = HashStore()
    heard = Progress(NullObserver(), store, Place(1, 1, 2, 2))
    assert where(store, 1) == ""
    heard.phase("encode")
    assert where(store, 1) == " in encode"
    heard.phase("denoise")
    assert where(store, 1) == " in step 0"
    heard.step(StepRecord(0, "full", 1, 1, 0.0, 0.0, 0), 2)
    assert where(store, 1) == " in step 1"
    heard.step(StepRecord(1, "full", 1, 1, 0.0, 0.0, 0), 2)
    assert where(store, 1) == " in step 1"  # the last one: there is none after it
    assert where(store, 0) == ""


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-signal.SIGKILL, ["rank 1 was killed by signal SIGKILL in decode", "memory"]),
        (-signal.SIGSEGV, ["rank 1 was killed by signal SIGSEGV in decode", "see its output"]),
        (7, ["rank 1 ended with exit code 7 in decode", "see its output"]),
    ],
)
def test_death_of_a_rank_that_said_nothing(code, words):
    store = HashStore()
    Progress(NullObserver(), store, Place(1, 1, 2, 2)).phase("decode")
    cause = _death(store, 1, code, 2)
    assert (cause.rank, cause.code) == (1, 1)
    assert all(word in cause.sentence for word in words)


def test_a_signal_in_a_destructor_is_not_lost(capfd):
    """Python swallows what is raised there."""
    program = """
import os, signal, sys, time
from jano_dist.gang import Stopped, enlist

class Thing:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)

enlist()
try:
    thing = Thing()
    del thing
    time.sleep(5)
    sys.exit("it was lost")
except Stopped:
    sys.exit(7)
"""
    ended = subprocess.run([sys.executable, "-c", program], check=False)
    assert ended.returncode == 7
    assert capfd.readouterr().err == ""
