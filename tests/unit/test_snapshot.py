"""Snapshots as files: which stay, which is found, and what a disk that is full changes."""

import errno
import os
from pathlib import Path

import pytest
import torch

from jano_dist import snapshot
from jano_dist.errors import UserError
from jano_dist.snapshot import Snapshot, SnapshotFolder, clear, facts_of, newest_whole

RUN = {"prompt": "a", "files": "1", "config": {name: {} for name in ("model", "video", "sampling", "policy")}}


def packed(step, **facts):
    return Snapshot(step, {"a": torch.tensor([step])}, {**RUN, **facts}).pack()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run.jano-dist-unfinished"


def keeper(folder, required=False, seconds=0.0):
    notes, found = [], []
    snapshots = SnapshotFolder(folder, seconds, required=required, note=notes.append, found=found.append)
    snapshots.notes, snapshots.found = notes, found
    return snapshots


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_two_stay(folder):
    snapshots = keeper(folder)
    for step in (4, 8, 12, 100):
        snapshots.keep(step, packed(step))
    assert names(folder) == ["step-000012.snapshot", "step-000100.snapshot"]
    assert facts_of(newest_whole(folder))["step"] == 100
    clear(folder)
    assert not folder.exists()


def test_what_is_not_ours_stays(folder):
    keeper(folder).keep(4, packed(4))
    (folder / "rank-1.log").write_text("said")
    clear(folder)
    assert names(folder) == ["rank-1.log"]


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-1], lambda content: b"", lambda content: b"x" * 99]
)
def test_the_one_before_a_damaged_one(folder, damage):
    snapshots = keeper(folder)
    for step in (4, 8):
        snapshots.keep(step, packed(step))
    newest = folder / "step-000008.snapshot"
    newest.write_bytes(damage(newest.read_bytes()))
    assert keeper(folder, True).newest(RUN) == packed(4)
    (folder / "step-000004.snapshot").write_bytes(b"")
    assert newest_whole(folder) is None


def test_when_it_is_due(folder, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(snapshot.time, "monotonic", lambda: clock[0])
    snapshots = keeper(folder, seconds=30)
    due = []
    for now in (100, 129, 130.5, 131, 161):
        clock[0] = now
        due.append(snapshots.due(last=False))
        if due[-1]:
            snapshots.keep(int(now), packed(int(now)))
    assert due == [True, False, True, False, True]
    assert snapshots.due(last=True)


def test_another_run_goes_with_the_first_of_a_new_one(folder):
    keeper(folder).keep(20, packed(20, prompt="b"))
    anew = keeper(folder)
    assert anew.newest(RUN) is None
    (note,) = anew.notes
    assert "is of the prompt 'b', not of 'a': this one begins" in note
    assert anew.found == []
    assert names(folder) == ["step-000020.snapshot"]
    anew.keep(4, packed(4))
    assert names(folder) == ["step-000004.snapshot"]


def test_a_run_that_goes_on_keeps_its_own(folder):
    keeper(folder).keep(4, packed(4))
    again = keeper(folder)
    assert again.newest(RUN) == packed(4)
    assert (again.found, again.notes) == ([4], [])
    again.keep(8, packed(8))
    assert names(folder) == ["step-000004.snapshot", "step-000008.snapshot"]


def test_another_run_where_it_must_be_the_same(folder):
    keeper(folder).keep(4, packed(4, prompt="b"))
    with pytest.raises(UserError, match="the prompt 'b'"):
        keeper(folder, True).newest(RUN)
    assert names(folder) == ["step-000004.snapshot"]


def test_a_full_disk_does_not_end_the_run(folder, monkeypatch):
    snapshots = keeper(folder)
    snapshots.keep(4, packed(4))
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space")))
    snapshots.keep(8, packed(8))
    (note,) = snapshots.notes
    assert "no snapshot could be written" in note
    assert "No space" in note
    assert newest_whole(folder) == packed(4)
    monkeypatch.undo()
    clear(folder)
    assert not Path(folder).exists()
