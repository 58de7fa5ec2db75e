"""How several runs of a benchmark become one result."""

import json
import sys

import pytest

from benchmarks import merge as merging
from benchmarks import repeat
from benchmarks.common import save
from benchmarks.merge import merge


def test_numbers_that_differ_become_median_lowest_and_highest():
    runs = [{"mesh": {"seconds": seconds, "tokens": 320}} for seconds in (5.0, 1.0, 4.0, 2.0, 9.0)]
    assert merge(runs) == {"mesh": {"seconds": {"median": 4.0, "lowest": 1.0, "highest": 9.0}, "tokens": 320}}


def test_lists_are_merged_item_by_item():
    runs = [[{"name": "a", "x": 1}, 7], [{"name": "a", "x": 3}, 7]]
    assert merge(runs) == [{"name": "a", "x": {"median": 2, "lowest": 1, "highest": 3}}, 7]


@pytest.mark.parametrize(
    "leaves",
    [
        ["2026-11-21T10:00:00", "2026-11-21T10:05:00"],
        [True, False],  # no numbers, although Python counts with them
        [1, True],
        [1, None],
        [[1, 2], [1]],
        [{"a": 1}, {"b": 1}],
    ],
)
def test_what_differs_otherwise_is_listed(leaves):
    assert merge(leaves) == {"differs": leaves}


def test_what_all_runs_agree_on_stays():
    for leaf in ("abc", 3, 0.5, True, None, [], {}):
        assert merge([leaf] * 5) == leaf


def test_the_merged_file_keeps_the_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(merging, "RESULTS", tmp_path)
    files = []
    for turn, seconds in enumerate((2.0, 1.0, 3.0)):
        files.append(tmp_path / str(turn) / "2026-01-01-name.json")
        files[-1].parent.mkdir()
        files[-1].write_text(json.dumps({"seconds": seconds}))
    written = merging.write(files)
    assert written == tmp_path / "2026-01-01-name.json"
    assert json.loads(written.read_text()) == {
        "summary": {"seconds": {"median": 2.0, "lowest": 1.0, "highest": 3.0}},
        "runs": [{"seconds": 2.0}, {"seconds": 1.0}, {"seconds": 3.0}],
    }


def test_every_repetition_is_a_process_with_a_folder_of_its_own(tmp_path, monkeypatch):
    def process(call, env, check):
        assert check
        assert call == [sys.executable, "-m", "benchmarks.retention", "--steps", "20"]
        folder = tmp_path / env["BENCHMARK_RESULTS"]
        folder.mkdir(parents=True)
        (folder / "2026-01-01-name.json").write_text(json.dumps({"turn": len(started)}))
        started.append(folder)

    started = []
    monkeypatch.setattr(merging, "RESULTS", tmp_path)
    monkeypatch.setattr(repeat.subprocess, "run", process)
    monkeypatch.setattr(sys, "argv", ["repeat", "3", "retention", "--steps", "20"])
    repeat.main()
    assert len(set(started)) == 3
    merged = json.loads((tmp_path / "2026-01-01-name.json").read_text())
    assert merged["runs"] == [{"turn": 0}, {"turn": 1}, {"turn": 2}]


def test_a_result_says_how_it_was_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCHMARK_RESULTS", str(tmp_path))
    monkeypatch.setattr(sys, "orig_argv", ["/some/where/python3", "-m", "benchmarks.x", "--prompts", "a b"])
    ran = json.loads(save("x", {"figure": 1}, threads=[1, 1]).read_text())["ran"]
    assert ran["command"] == "python -m benchmarks.x --prompts 'a b'"
    assert (ran["ranks"], ran["threads"]) == (2, [1, 1])
    assert ran["ended"].endswith("+00:00")
    assert {"commit", "dirty", "cores", "cpu", "versions"} <= set(ran)
