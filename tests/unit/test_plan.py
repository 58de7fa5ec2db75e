"""The order of tokens and the prefix each step kind computes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jano_dist.tokens.plan import TokenPlan
from jano_dist.tokens.schedule import StepKind
from tests.unit import reference

level_lists = st.lists(st.integers(1, 3), min_size=1, max_size=60)


def plan_of(levels):
    return TokenPlan.from_levels(torch.tensor(levels, dtype=torch.uint8))


def test_active_then_moderate_then_static():
    plan = plan_of([1, 3, 2, 3, 1, 2, 3])
    assert plan.order.dtype == torch.int64
    assert plan.order.tolist() == [1, 3, 6, 2, 5, 0, 4]
    assert plan.tokens == 7
    assert plan.rows(StepKind.ACTIVE).tolist() == [1, 3, 6]
    assert plan.rows(StepKind.MODERATE).tolist() == [1, 3, 6, 2, 5]
    assert plan.rows(StepKind.REFRESH).tolist() == plan.rows(StepKind.FULL).tolist() == plan.order.tolist()


def test_shares_by_hand():
    assert plan_of([1, 1, 1, 3]).shares() == {"static": 0.75, "moderate": 0.0, "active": 0.25}


@pytest.mark.parametrize(("level", "moderate_rows", "active_rows"), [(1, 0, 0), (2, 5, 0), (3, 5, 5)])
def test_equal_levels_keep_the_natural_order(level, moderate_rows, active_rows):
    plan = plan_of([level] * 5)
    assert plan.order.tolist() == [0, 1, 2, 3, 4]
    assert plan.count(StepKind.MODERATE) == moderate_rows
    assert plan.count(StepKind.ACTIVE) == active_rows


def test_the_natural_plan_computes_everything():
    plan = TokenPlan.natural(4)
    assert plan.order.dtype == torch.int64
    assert plan.order.tolist() == [0, 1, 2, 3]
    assert [plan.count(kind) for kind in StepKind] == [4, 4, 4, 4]
    assert plan.shares() == {"static": 0.0, "moderate": 0.0, "active": 1.0}
    assert plan.tokens == 4


@pytest.mark.parametrize("levels", [[0], [1, 2, 4], [3, 255]])
def test_levels_outside_one_to_three(levels):
    with pytest.raises(ValueError, match="level"):
        plan_of(levels)


@pytest.mark.parametrize("shape", [(), (2, 2), (1, 4)])
def test_levels_must_be_one_dimensional(shape):
    with pytest.raises(ValueError, match="map"):
        TokenPlan.from_levels(torch.ones(shape, dtype=torch.uint8))


def test_levels_are_not_modified():
    levels = torch.tensor([1, 3, 2], dtype=torch.uint8)
    TokenPlan.from_levels(levels)
    assert levels.tolist() == [1, 3, 2]


def test_a_long_plan_is_stable():
    levels = torch.randint(1, 4, (10_000,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert TokenPlan.from_levels(levels).order.tolist() == reference.plan_order(levels.tolist())


@given(level_lists)
def test_every_token_exactly_once(levels):
    assert sorted(plan_of(levels).order.tolist()) == list(range(len(levels)))


@given(level_lists)
def test_ordered_by_level_and_stable_inside_a_level(levels):
    order = plan_of(levels).order.tolist()
    keys = [(-levels[token], token) for token in order]
    assert keys == sorted(keys)
    assert order == reference.plan_order(levels)


@given(level_lists)
def test_each_kind_computes_its_own_levels(levels):
    plan = plan_of(levels)
    lowest = {StepKind.FULL: 1, StepKind.REFRESH: 1, StepKind.MODERATE: 2, StepKind.ACTIVE: 3}
    for kind, floor in lowest.items():
        wanted = {token for token, level in enumerate(levels) if level >= floor}
        assert type(plan.count(kind)) is int
        assert plan.count(kind) == len(wanted)
        assert set(plan.rows(kind).tolist()) == wanted


@given(level_lists)
def test_the_rows_of_a_kind_are_a_prefix_of_the_next(levels):
    plan = plan_of(levels)
    active, moderate, full = (
        plan.rows(k).tolist() for k in (StepKind.ACTIVE, StepKind.MODERATE, StepKind.FULL)
    )
    assert moderate[: len(active)] == active
    assert full[: len(moderate)] == moderate


@given(level_lists)
def test_shares_sum_to_one(levels):
    shares = plan_of(levels).shares()
    assert set(shares) == {"static", "moderate", "active"}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["static"] == pytest.approx(levels.count(1) / len(levels))
    assert shares["moderate"] == pytest.approx(levels.count(2) / len(levels))
