"""Which kind of step comes when."""

import dataclasses
from collections import Counter

import pytest

from jano_dist.tokens.schedule import Schedule, StepKind
from tests.unit import reference


def kinds(*settings):
    schedule = Schedule(*settings)
    return [schedule.kind(step) for step in range(schedule.steps)]


def test_a_short_run_by_hand():
    letters = "".join(kind[0] for kind in kinds(14, 2, 1, 6, 2))
    assert letters == "ff" + "ramama" + "ramam" + "f"


def test_kinds_are_their_names():
    names = ["full", "refresh", "moderate", "active", "chosen", "skip", "blocks"]
    assert [str(kind) for kind in StepKind] == names


@pytest.mark.parametrize(
    ("intervals", "refresh", "moderate", "active"),
    [((6, 4), 7, 6, 27), ((3, 2), 14, 13, 13), ((6, 3), 7, 7, 26)],
)
def test_published_settings(intervals, refresh, moderate, active):
    found = kinds(50, 6, 4, *intervals)
    assert found == reference.schedule(50, 6, 4, *intervals)
    assert Counter(found) == {"full": 10, "refresh": refresh, "moderate": moderate, "active": active}


@pytest.mark.parametrize("intervals", [(1, 1), (4, 1), (1, 4), (3, 6), (8, 5), (100, 100)])
@pytest.mark.parametrize(
    ("steps", "warmup", "cooldown"), [(50, 7, 4), (9, 0, 0), (9, 4, 4), (9, 0, 4), (9, 8, 0)]
)
def test_agrees_with_the_reference(steps, warmup, cooldown, intervals):
    settings = (steps, warmup, cooldown, *intervals)
    assert kinds(*settings) == reference.schedule(*settings)


def test_the_first_step_after_warmup_is_a_refresh():
    assert Schedule(50, 6, 4, 6, 4).kind(5) is StepKind.FULL
    assert Schedule(50, 6, 4, 6, 4).kind(6) is StepKind.REFRESH


def test_a_refresh_wins_over_a_moderate_step():
    assert Schedule(50, 6, 4, 6, 4).kind(6 + 12) is StepKind.REFRESH


@pytest.mark.parametrize("cooldown", [0, 4])
def test_warmup_may_be_everything(cooldown):
    assert set(kinds(10, 10, cooldown, 6, 4)) == {StepKind.FULL}


@pytest.mark.parametrize(("steps", "warmup", "cooldown"), [(10, 6, 4), (10, 8, 4), (10, 12, 0), (10, 0, 10)])
def test_a_step_must_be_left_between_warmup_and_cooldown(steps, warmup, cooldown):
    sentence = (
        f"{steps} steps leave nothing between {warmup} warm-up and {cooldown} cool-down steps: use more steps"
    )
    with pytest.raises(ValueError, match=sentence):
        Schedule(steps, warmup, cooldown, 6, 4)


@pytest.mark.parametrize("intervals", [(0, 4), (6, 0), (-1, 4), (6, -2)])
def test_intervals_are_at_least_one(intervals):
    with pytest.raises(
        ValueError, match=r"^policy.static_interval and policy.moderate_interval must be 1 or more$"
    ):
        Schedule(50, 6, 4, *intervals)


@pytest.mark.parametrize("step", [-1, 50, 51])
def test_a_step_out_of_range(step):
    with pytest.raises(IndexError, match=f"step {step} is outside 0..49"):
        Schedule(50, 6, 4, 6, 4).kind(step)


def test_schedule_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Schedule(50, 6, 4, 6, 4).steps = 40
