"""What the ranks' step records become in `run.json`."""

import pytest
import torch

from jano_dist.observe import StepRecord, merge_ranks, step_table


def step(index, own_tokens, seconds, comm_seconds, comm_bytes):
    return StepRecord(
        index, ("full", "active")[index], 10 - index, own_tokens, seconds, comm_seconds, comm_bytes
    )


# Three ranks; in the second step the first rank is the slowest.
RANKS = [
    [step(0, 4, 1.5, 0.75, 100), step(1, 3, 2.5, 0.125, 2**40 + 1)],
    [step(0, 3, 2.0, 0.25, 80), step(1, 3, 1.0, 0.5, 7)],
    [step(0, 3, 1.0, 0.5, 60), step(1, 3, 1.25, 0.25, 0)],
]


def test_a_table_is_what_differs_between_ranks():
    table = step_table(RANKS[0])
    assert table.dtype == torch.float64
    assert table.tolist() == [[4, 1.5, 0.75, 100], [3, 2.5, 0.125, 2**40 + 1]]


def test_of_all_ranks():
    """The slowest rank's seconds, the least waiting one's communication, all ranks' bytes."""
    first, second = merge_ranks(RANKS[0], torch.stack([step_table(rank) for rank in RANKS]))
    assert first == {
        "index": 0,
        "kind": "full",
        "tokens": 10,
        "seconds": 2.0,
        "comm_seconds": 0.25,
        "comm_bytes": 240,
        "ranks": {
            "tokens": [4, 3, 3],
            "seconds": [1.5, 2.0, 1.0],
            "comm_seconds": [0.75, 0.25, 0.5],
            "comm_bytes": [100, 80, 60],
        },
    }
    assert (second["index"], second["kind"], second["tokens"]) == (1, "active", 9)
    assert (second["seconds"], second["comm_seconds"], second["comm_bytes"]) == (2.5, 0.125, 2**40 + 8)
    for counts in (second["ranks"]["tokens"], second["ranks"]["comm_bytes"]):
        assert all(type(count) is int for count in counts)


def test_a_rank_that_counted_other_steps_is_refused():
    with pytest.raises(ValueError, match="zip"):
        merge_ranks(RANKS[0], torch.stack([step_table(rank[:1]) for rank in RANKS]))


def test_collectives_that_were_not_timed():
    """Of one rank or of all: then nothing is known of the step's, and a clock of 0 is something else."""
    steps = [step(0, 6, 3.0, None, 100), step(1, 3, 2.0, 0.0, 8)]
    other = [step(0, 4, 2.5, 0.25, 50), step(1, 4, 2.5, 0.125, 2)]
    first, second = merge_ranks(steps, torch.stack([step_table(steps), step_table(other)]))
    assert first["comm_seconds"] is first["ranks"]["comm_seconds"] is None
    assert (first["seconds"], first["comm_bytes"], first["ranks"]["seconds"]) == (3.0, 150, [3.0, 2.5])
    assert (second["comm_seconds"], second["ranks"]["comm_seconds"]) == (0.0, [0.0, 0.125])
