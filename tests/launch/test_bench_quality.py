"""`jano-dist bench quality` on several ranks, and after a kill."""

import json
import os
import signal
import time

import pytest

from tests.launch.conftest import finish

PROMPT = "a red ball moves left over a navy striped background"
CASES = """\
fast: {policy.static_threshold: 0.4, policy.moderate_threshold: 0.6}
random: {policy.static_threshold: 0.4, policy.moderate_threshold: 0.6, rearrange: random}
few steps: {like: fast}
other mesh: {policy.name: full, mesh.cfg: 1, mesh.ulysses: 2, mesh.kv: 1}
"""
FEWER = "\n".join(CASES.splitlines()[:3])


@pytest.fixture
def bench(jano_dist, small, tmp_path):
    """`bench(out, *more)`: a comparison of one prompt, not yet waited for."""

    def begin(out, *more, cases=CASES):
        (tmp_path / "cases.yaml").write_text(cases)
        options = ["--config", small, "--prompt", PROMPT, "--cases", tmp_path / "cases.yaml", "--out", out]
        return jano_dist("bench", "quality", *options, *more)

    return begin


def record(out):
    return json.loads((out / "quality.json").read_text())


def keys(out):
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    return [row["key"] for row in rows if "key" in row]


def test_two_ranks_give_the_same_figures(bench, tmp_path):
    """One branch on each rank changes no bit; another mesh sums in another order."""
    alone = finish(bench(tmp_path / "one", cases=FEWER))
    two = finish(bench(tmp_path / "two", "--nproc", 2))
    assert (alone.code, two.code) == (0, 0), (alone.err, two.err)
    ours, theirs = record(tmp_path / "two"), record(tmp_path / "one")
    for row, other in zip(ours["rows"], theirs["rows"], strict=False):
        assert row["case"] == other["case"]
        assert row["quality"] == other["quality"]
        assert (row["work"], row["kinds"], row["levels"]) == (other["work"], other["kinds"], other["levels"])
    assert ours["ran"][0]["ranks"] == 2
    mesh = ours["rows"][-1]
    assert mesh["case"] == "other mesh"
    assert mesh["config"]["mesh"] == {"cfg": 1, "kv": 1, "ulysses": 2}
    assert mesh["quality"]["psnr"] == "identical" or mesh["quality"]["psnr"] > 50


def test_killed_in_the_middle_it_goes_on(bench, tmp_path):
    out = tmp_path / "out"
    process = bench(out, "--seeds", 2, cases=FEWER)
    deadline = time.monotonic() + 120
    while not (out / "rows.jsonl").exists() or len((out / "rows.jsonl").read_text().splitlines()) < 4:
        assert process.poll() is None, finish(process).err
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    begun = keys(out)
    assert 3 <= len(begun) < 8
    ended = finish(bench(out, "--seeds", 2, cases=FEWER))
    assert ended.code == 0, ended.err
    assert keys(out)[: len(begun)] == begun
    assert len(keys(out)) == len(set(keys(out)))  # nothing was made twice
    rows = record(out)["rows"]
    # What was compared with a full run of the process before has no speed-up, the rest has one.
    sessions = {row["case"]: row["session"] for row in rows if row["seed"] == 0}
    for row in rows[:4]:
        assert (row["full_seconds"] is None) == (row["session"] != sessions["full"])
    assert all(row["full_seconds"] for row in rows[4:])
    assert not list((out / "full").iterdir())
