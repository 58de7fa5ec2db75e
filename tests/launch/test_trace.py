"""The timeline of a real run of two ranks, against its record and the formulas for what ranks exchange."""

import json
from collections import Counter
from itertools import pairwise

import pytest

from jano_dist.models.sizes import read_sizes
from tests.launch.conftest import finish

# Of the small config: 4 warm-up steps; every 4th is a refresh, every 2nd moderate; 2 cool-down steps.
KINDS = [*["full"] * 4, "refresh", "active", "moderate", "active", "refresh", "active", *["full"] * 2]
BRANCHES = 2


def inside(inner, outer):
    return outer["ts"] <= inner["ts"] and end(inner) <= end(outer)


def end(event):
    return round(event["ts"] + event["dur"], 3)  # nanoseconds


def check_rows(rows):
    """Within a category events follow one another; phases hold steps, steps hold collectives."""
    for row in rows:
        assert [event["name"] for event in row["phase"]] == ["load", "encode", "denoise", "decode"]
        for events in row.values():
            for one, next_one in pairwise(events):
                assert end(one) <= next_one["ts"]
        _, encode, denoise, decode = row["phase"]
        assert all(inside(step, denoise) for step in row["step"])
        for event in row["collective"]:
            holders = [step for step in row["step"] if inside(event, step)]
            # Between steps, and in all other phases, a collective is in its phase only.
            assert len(holders) <= 1
            assert sum(inside(event, phase) for phase in (encode, denoise, decode)) == 1


def check_steps(rows, record):
    """Names, tokens and seconds are those of run.json; so are the bytes of their collectives."""
    for rank, row in enumerate(rows):
        assert [step["name"] for step in row["step"]] == [f"step {i} {kind}" for i, kind in enumerate(KINDS)]
        for event, step in zip(row["step"], record["steps"], strict=True):
            assert event["args"]["tokens"] == step["tokens"]
            assert event["dur"] == pytest.approx(1e6 * step["ranks"]["seconds"][rank], abs=0.002)
            sent = [e["args"]["sent bytes"] for e in row["collective"] if inside(e, event)]
            assert sum(sent) == step["ranks"]["comm_bytes"][rank]
            seconds = sum(e["dur"] for e in row["collective"] if inside(e, event)) / 1e6
            assert seconds == pytest.approx(step["ranks"]["comm_seconds"][rank], abs=1e-6)


def check_collectives(rows):
    """Per layer and forward two exchanges for heads; per step a gather and a decision. With the map come its
    digest and, for the first snapshot, what ranks know of the steps."""
    layers = read_sizes("wan-tiny", local=True).geometry.layers
    number = BRANCHES * 2 * layers
    for row in rows:
        for index, step in enumerate(row["step"]):
            names = Counter(event["name"] for event in row["collective"] if inside(event, step))
            mapped = index == KINDS.index("refresh")
            # Of few tokens a rank's branches take turns, so exchanges are begun, and waited for later.
            assert names == Counter(
                {
                    "all-to-all ulysses": number,
                    **({"wait ulysses": number} if is_few(step, row) else {}),
                    "all-to-all sequence": 1,
                    "broadcast": 1 + mapped,
                    "collect": 2 * mapped,
                }
            )
        # Whether there is a snapshot; once all are there the text, its layout in two before it, and noise.
        encode = [event["name"] for event in row["collective"] if inside(event, row["phase"][1])]
        assert encode == ["broadcast", "await everyone", *["broadcast"] * 4]
        assert "await everyone" in [e["name"] for e in row["collective"] if inside(e, row["phase"][3])]


def check_alignment(rows):
    """Nobody has the rows of another rank before that one has sent them."""
    for one, other in zip(*map(exchanges, rows), strict=True):
        assert max(one[0], other[0]) <= min(one[1], other[1])


def exchanges(row):
    """When each was begun, and when it was had: waited for, in the same order, where branches take turns."""
    waits = (end(event) for event in row["collective"] if event["name"] == "wait ulysses")
    few = [step for step in row["step"] if is_few(step, row)]
    for event in row["collective"]:
        if event["name"].startswith("all-to-all"):
            later = event["name"].endswith("ulysses") and any(inside(event, step) for step in few)
            yield event["ts"], next(waits) if later else end(event)


def is_few(step, row):
    """Whether at most half of the tokens are computed."""
    return 2 * step["args"]["tokens"] <= row["step"][0]["args"]["tokens"]


def test_two_ranks(jano_dist, generate, tmp_path):
    out = tmp_path / "run"
    one_snapshot = ("--set", "snapshot.seconds=3600")
    ended = finish(jano_dist(*generate(out, "--nproc", 2, "--ulysses", 2, "--trace", *one_snapshot)))
    assert (ended.code, ended.err) == (0, "")
    record = json.loads((out / "run.json").read_text())
    events = json.loads((out / "trace.json").read_text())["traceEvents"]
    assert sorted({event["tid"] for event in events}) == [0, 1]
    rows = [
        {
            category: [e for e in events if e["tid"] == rank and e.get("cat") == category]
            for category in ("phase", "step", "collective")
        }
        for rank in range(2)
    ]
    check_rows(rows)
    check_steps(rows, record)
    check_collectives(rows)
    check_alignment(rows)
    # Without the option the next run leaves none, not even this one's.
    ended = finish(jano_dist(*generate(out, "--policy", "full", "--steps", 1)))
    assert ended.code == 0
    assert not (out / "trace.json").exists()


def test_ranks_that_were_started_again(supervised, tmp_path):
    """Rank 1 is killed in step 9, and the gang goes on with step 8: a row shows how long nothing went on."""
    out = tmp_path / "run"
    again = supervised("kill:1:9:1", out, "--set", "snapshot.seconds=0", "--trace", recoveries=1)
    ended = finish(again)
    assert (ended.code, ended.err) == (0, "")
    (row,) = json.loads((out / "run.json").read_text())["recoveries"]
    events = json.loads((out / "trace.json").read_text())["traceEvents"]
    (lost,) = [event for event in events if event.get("cat") == "recovery"]
    assert lost["tid"] == 2
    assert lost["ts"] == 0  # nothing that was noted before it is left
    assert lost["dur"] == pytest.approx(1e6 * (row["resumed"] - row["ended"]), abs=1)
    assert lost["args"]["sentence"] == row["sentence"]
    assert lost["args"]["step"] == 8
    for rank in (0, 1):
        steps = [e for e in events if e["tid"] == rank and e.get("cat") == "step"]
        assert [step["name"] for step in steps] == [f"step {i} {KINDS[i]}" for i in range(8, 12)]
        load = next(e for e in events if e["tid"] == rank and e.get("cat") == "phase")
        assert 0 < load["ts"] < steps[0]["ts"]
        # Rank 0 says when the first step is done; within a millisecond, as wall clocks are set now and then.
        if rank == 0:
            assert end(steps[0]) <= lost["dur"] + 1e3 <= end(steps[1]) + 1e3


def test_one_process(cli, small, tmp_path):
    """A row of its own, and no collectives: there is nobody to exchange anything with."""
    result = cli("generate", "a red ball", "--config", small, "--trace", "--out", tmp_path / "run")
    assert result.code == 0, result.err
    events = json.loads((tmp_path / "run" / "trace.json").read_text())["traceEvents"]
    drawn = Counter((event["tid"], event["cat"]) for event in events if event["ph"] == "X")
    assert drawn == {(0, "phase"): 4, (0, "step"): len(KINDS)}
