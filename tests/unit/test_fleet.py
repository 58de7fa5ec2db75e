"""Gangs that are not there make the jobs of a batch: who gets what, and what becomes of failures."""

import json
from datetime import timedelta
from types import SimpleNamespace

import pytest

from jano_dist.batch import NOTHING_LEFT, NOTHING_NOW, BatchFolder, Job, Plan, Work
from jano_dist.config import load_config
from jano_dist.errors import RunError, UserError
from jano_dist.gang import Cause, claim
from jano_dist.launchers.fleet import make_all
from jano_dist.launchers.supervisor import Run

RUN = '{"versions": {"jano_dist": "0"}, "seconds": {"total": 1}}'


class Script:
    """A gang of one rank that does in each start what a list says, one word for each question it asks.

    A word: `done`; `fail`, `final` or `write`: it has the job, and fails with or in that; `made`: it is done,
    and fails before it can say so; `unable`, `refused`: it fails before it asks. After its words it is done
    always.
    """

    address = "127.0.0.1"

    def __init__(self, folder, *starts):
        self.folder, self.starts = folder, list(starts)
        self.begun, self.had, self.rows, self.ends = 0, [], [], 0

    def start(self, arguments, environment):
        self.words = list(self.starts.pop(0)) if self.starts else []
        self.turn, self.asked, self.gone, self.store = 0, False, False, None
        self.environment, self.begun = environment, self.begun + 1

    def connect(self):
        from torch.distributed import PrefixStore, TCPStore

        port = int(self.environment["MASTER_PORT"])
        store = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=5))
        return PrefixStore("jano_dist", store)

    def ended(self):
        if self.gone:
            return {}
        self.store = self.store or self.connect()
        if self.words[:1] in (["unable"], ["refused"]):
            return self.fail(self.words[0])
        if not self.asked:
            self.store.set(f"want/{self.turn}", "")
            self.asked = True
        if not self.store.check([f"job/{self.turn}"]):
            return {}
        index, self.asked, self.turn = int(self.store.get(f"job/{self.turn}")), False, self.turn + 1
        if index == NOTHING_LEFT:
            self.gone = True
            return {0: 0}
        return {} if index == NOTHING_NOW else self.make(index)

    def make(self, index):
        self.had.append(index)
        self.rows.append(json.loads(self.store.get("recoveries")))
        word = self.words.pop(0) if self.words else "done"
        if word in ("done", "made"):
            run = self.folder.path / str(index)
            run.mkdir()
            (run / "run.json").write_text(RUN)
        return {} if word == "done" else self.fail(word)

    def fail(self, word):
        self.gone = True
        self.store.set("at/0", "write" if word == "write" else "step 3")
        code = 2 if word == "refused" else 1
        claim(self.store, Cause(0, code, f"it is {word}", final=word in ("final", "write", "refused")))
        return {0: code}

    def last_words(self, rank):
        return []

    def end(self):
        self.ends += 1

    def close(self):
        pass


@pytest.fixture
def batch(tmp_path):
    """`batch(jobs, *scripts)`: what was said, the work, the gangs and the error of a batch."""

    def run(jobs, *scripts, recoveries=1):
        plan = Plan((load_config("wan-tiny"),), tuple(Job(str(i), i + 1, "a", i, "", 0) for i in range(jobs)))
        folder = BatchFolder(tmp_path / "out")
        folder.begin(plan)
        work, said, error = Work(folder, plan), [], None
        gangs = [Script(folder, *script) for script in scripts]
        try:
            make_all(gangs, [], Run(1, recoveries, 60, said.append), work, lambda sights: None)
        except (UserError, RunError) as caught:
            error = caught
        return SimpleNamespace(work=work, said=said, gangs=gangs, error=error, folder=folder)

    return run


def ids(jobs):
    return [job.id for job in jobs]


def test_every_job_once_and_in_order(batch):
    ran = batch(5, [], [])
    assert ran.error is None
    first, second = (gang.had for gang in ran.gangs)
    assert first == sorted(first)
    assert sorted(first + second) == list(range(5))
    assert len(second) > 0
    assert ran.said[-1] == f"{ran.work.done[-1].id}: done in 1.0 s (5 of 5)"
    assert [(gang.begun, gang.ends) for gang in ran.gangs] == [(1, 1), (1, 1)]


def test_set_aside_after_three_while_the_rest_goes_on(batch):
    ran = batch(3, [["fail"], ["fail"], ["fail"]])
    assert ran.error is None
    assert ran.gangs[0].had == [0, 0, 0, 1, 2]
    assert (ids(ran.work.done), ids(ran.work.aside)) == (["1", "2"], ["0"])
    assert [row["attempt"] for row in ran.folder.failures()["0"]] == [1, 2, 3]


def test_jobs_that_fail_one_after_the_other_do_not_end_the_batch(batch):
    ran = batch(5, [["fail"]] * 12, recoveries=0)
    assert ran.error is None
    assert (ids(ran.work.done), ids(ran.work.aside)) == (["4"], ["0", "1", "2", "3"])


def test_what_would_fail_again_is_tried_once(batch):
    ran = batch(2, [["final"]])
    assert (ran.gangs[0].had, ids(ran.work.aside)) == ([0, 1], ["0"])


def test_the_next_attempt_knows_of_the_earlier_ones(batch):
    ran = batch(2, [["fail"], ["fail"]])
    assert ran.gangs[0].had == [0, 0, 0, 1]
    told = [[(row["attempt"], row["sentence"]) for row in rows] for rows in ran.gangs[0].rows]
    first, second = (1, "it is fail"), (2, "it is fail")
    assert told == [[], [first], [first, second], []]


def test_done_before_it_could_say_so(batch):
    ran = batch(2, [["made"]])
    assert ran.error is None
    assert (ran.gangs[0].had, ids(ran.work.done)) == ([0, 1], ["0", "1"])
    assert ran.folder.failures() == {}


@pytest.mark.parametrize("jobs", [1, 2])
def test_failing_before_any_job(batch, jobs):
    ran = batch(jobs, [["unable"], ["unable"]], recoveries=1)
    assert type(ran.error) is RunError
    assert str(ran.error) == "every gang has failed too often; the last time: it is unable"
    assert ran.gangs[0].begun == 2
    assert ran.folder.failures() == {}


def test_not_in_a_row(batch):
    ran = batch(3, [["unable"], ["done", "fail"], ["fail"], ["done", "fail"], ["unable"]], recoveries=1)
    assert ran.error is None
    assert len(ran.work.done) == 3


def test_the_other_gang_takes_over(batch):
    ran = batch(2, [["fail"], ["unable"], ["unable"]], [], recoveries=1)
    assert ran.error is None
    assert ran.gangs[1].had in ([1, 0], [0, 1])
    assert "gang 1 is given up" in ran.said


def test_a_full_disk_ends_the_batch(batch):
    """Writing fails, which is no fault of the job's: the rest is not tried and set aside one by one."""
    ran = batch(9, [["write"]] * 9, recoveries=1)
    assert type(ran.error) is RunError
    assert (ran.gangs[0].had, ids(ran.work.aside)) == ([0, 0], [])


def test_bad_input_that_no_job_is_to_blame_for(batch):
    ran = batch(2, [["refused"]], [])
    assert (type(ran.error), str(ran.error)) == (UserError, "it is refused")
    assert all(gang.ends for gang in ran.gangs)
