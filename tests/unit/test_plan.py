"""The order of tokens and the prefix each step kind computes."""

import itertools

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
    assert [plan.count(kind) for kind in LOWEST] == [4, 4, 4, 4]
    assert plan.count(StepKind.SKIP) == 0
    assert plan.shares() == {"static": 0.0, "moderate": 0.0, "active": 1.0}
    assert plan.tokens == 4
    with torch.device("meta"):  # where anything made on the default device would be
        assert TokenPlan.natural(4).order.device.type == "cpu"


@pytest.mark.parametrize("levels", [[0], [1, 2, 4], [3, 255]])
def test_levels_outside_one_to_three(levels):
    with pytest.raises(
        ValueError, match=r"^a complexity map is uint8 \[N\] with levels 1 \(static\), 2 \(moderate\), "
    ):
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


# Who computes what, and where it lies in the K/V buffers.

NESTED = (StepKind.ACTIVE, StepKind.MODERATE, StepKind.REFRESH)
LOWEST = {StepKind.FULL: 1, StepKind.REFRESH: 1, StepKind.MODERATE: 2, StepKind.ACTIVE: 3}
# Down to no token at all, so that buckets are empty and ranks outnumber tokens.
maps_to_deal = st.lists(st.integers(1, 3), max_size=40)
dealt = given(maps_to_deal, st.integers(1, 9))
sharded = given(maps_to_deal, st.integers(1, 4), st.integers(1, 4))  # so many shards of so many ranks


def own_rows(deal):
    return [deal.own(rank).tolist() for rank in range(len(deal.counts))]


def shard_rows(deal, shard, size):
    """The tokens of a shard's ranks, as they lie after a gather inside it."""
    return list(itertools.chain(*own_rows(deal)[shard * size : (shard + 1) * size]))


def write(buffer, rows, moves):
    """Put each row's token where `moves` says; nothing may be read or written twice."""
    sources, places = [], []
    for source, target, length in moves:
        assert length > 0
        buffer[target : target + length] = rows[source : source + length]
        sources += range(source, source + length)
        places += range(target, target + length)
    assert sorted(sources) == list(range(len(rows)))
    assert len(places) == len(set(places))
    return places


def test_a_deal_by_hand():
    """Tokens 1 3 6 | 2 5 | 0 4 on two ranks: positions 0, 2, 4, 6 of the order are rank 0's."""
    plan = plan_of([1, 3, 2, 3, 1, 2, 3])
    active, moderate, refresh = (plan.deal(kind, 2) for kind in NESTED)
    assert own_rows(active) == [[1, 6], [3]]
    assert own_rows(moderate) == [[1, 6, 5], [3, 2]]
    assert own_rows(refresh) == [[1, 6, 5, 4], [3, 2, 0]]
    assert refresh.rows.tolist() == [1, 6, 5, 4, 3, 2, 0]
    # In the buffers, bucket by bucket: 1 6 3 | 5 2 | 4 0.
    assert active.moves == (((0, 0, 3),),)
    assert moderate.moves == (((0, 0, 2), (2, 3, 1), (3, 2, 1), (4, 4, 1)),)
    assert refresh.moves == (((0, 0, 2), (2, 3, 1), (3, 5, 1), (4, 2, 1), (5, 4, 1), (6, 6, 1)),)


def test_a_deal_over_shards_by_hand():
    """The same on two shards of one rank: each keeps its own tokens as they come."""
    plan = plan_of([1, 3, 2, 3, 1, 2, 3])
    for kind in NESTED:
        assert own_rows(plan.deal(kind, 2, 2)) == own_rows(plan.deal(kind, 2))
    assert plan.deal(StepKind.ACTIVE, 2, 2).moves == (((0, 0, 2),), ((0, 0, 1),))
    assert plan.deal(StepKind.REFRESH, 2, 2).moves == (((0, 0, 4),), ((0, 0, 3),))
    # Two shards of two ranks: positions 0, 4 | 1, 5 and 2, 6 | 3, in the buffers 1 3 | 5 0 and 6 2 | 4.
    refresh = plan.deal(StepKind.REFRESH, 4, 2)
    assert own_rows(refresh) == [[1, 5], [3, 0], [6, 4], [2]]
    assert refresh.moves == (((0, 0, 1), (1, 2, 1), (2, 1, 1), (3, 3, 1)), ((0, 0, 1), (1, 2, 1), (2, 1, 1)))


def test_one_rank_computes_the_plan_as_it_is():
    plan = plan_of([1, 3, 2, 3, 1, 2, 3])
    for kind in LOWEST:
        deal = plan.deal(kind, 1)
        assert deal.rows.tolist() == deal.own(0).tolist() == plan.rows(kind).tolist()
        assert deal.moves == (((0, 0, plan.count(kind)),),)


@dealt
def test_every_token_of_the_kind_is_dealt_once(levels, ranks):
    plan = plan_of(levels)
    for kind, floor in LOWEST.items():
        deal = plan.deal(kind, ranks)
        assert deal.rows.dtype == torch.int64
        assert sorted(deal.rows.tolist()) == [token for token, one in enumerate(levels) if one >= floor]
        assert len(deal.counts) == ranks
        assert list(itertools.chain(*own_rows(deal))) == deal.rows.tolist()


@dealt
def test_ranks_differ_by_one_token_at_most(levels, ranks):
    plan = plan_of(levels)
    for kind, floor in LOWEST.items():
        deal = plan.deal(kind, ranks)
        assert max(deal.counts) - min(deal.counts) <= 1
        for bucket in range(floor, 4):
            sizes = [sum(levels[token] == bucket for token in own) for own in own_rows(deal)]
            assert max(sizes) - min(sizes) <= 1


@dealt
def test_a_rank_computes_a_prefix_of_what_it_computes_in_a_larger_step(levels, ranks):
    plan = plan_of(levels)
    by_kind = [own_rows(plan.deal(kind, ranks)) for kind in NESTED]
    for smaller, larger in itertools.pairwise(by_kind):
        for few, many in zip(smaller, larger, strict=True):
            assert many[: len(few)] == few
    assert own_rows(plan.deal(StepKind.FULL, ranks)) == by_kind[-1]


@sharded
def test_a_token_lies_in_the_same_place_whatever_the_step(levels, shards, size):
    plan = plan_of(levels)
    for shard in range(shards):
        deals = {kind: plan.deal(kind, shards * size, shards) for kind in LOWEST}
        rows = {kind: shard_rows(deal, shard, size) for kind, deal in deals.items()}
        buffer = [None] * len(rows[StepKind.REFRESH])
        write(buffer, rows[StepKind.REFRESH], deals[StepKind.REFRESH].moves[shard])
        kept = [levels[token] for token in buffer]
        assert kept == sorted(kept, reverse=True)
        for kind in (StepKind.ACTIVE, StepKind.MODERATE, StepKind.REFRESH, StepKind.FULL):
            before = list(buffer)
            places = write(buffer, rows[kind], deals[kind].moves[shard])
            assert buffer == before
            assert sorted(places) == list(range(len(rows[kind])))  # what a step writes is a prefix


@given(maps_to_deal, st.integers(1, 4), st.integers(1, 4), st.randoms())
def test_chosen_tokens_stay_with_their_ranks_and_in_their_places(levels, shards, size, random):
    plan, chosen = plan_of(levels), [random.random() < 0.4 for _ in levels]
    deal = plan.deal_chosen(torch.tensor(chosen, dtype=torch.bool), shards * size, shards)
    every = plan.deal(StepKind.REFRESH, shards * size, shards)
    assert own_rows(deal) == [[token for token in own if chosen[token]] for own in own_rows(every)]
    for shard in range(shards):
        rows = shard_rows(every, shard, size)
        buffer = [None] * len(rows)
        write(buffer, rows, every.moves[shard])
        fresh = [None] * len(rows)
        write(fresh, shard_rows(deal, shard, size), deal.moves[shard])
        assert fresh == [token if chosen[token] else None for token in buffer]


@dealt
def test_a_step_that_is_skipped_computes_nothing(levels, ranks):
    deal = plan_of(levels).deal(StepKind.SKIP, ranks)
    assert (deal.rows.tolist(), deal.counts, deal.moves) == ([], (0,) * ranks, ((),))


@sharded
def test_what_an_active_step_sends_is_kept_in_one_piece(levels, shards, size):
    deal = plan_of(levels).deal(StepKind.ACTIVE, shards * size, shards)
    for shard, moves in enumerate(deal.moves):
        active = len(shard_rows(deal, shard, size))
        assert moves == (((0, 0, active),) if active else ())


@sharded
def test_moves_are_few(levels, shards, size):
    """At most one per bucket and rank: a copy each, per layer and step."""
    for kind, floor in LOWEST.items():
        moves = plan_of(levels).deal(kind, shards * size, shards).moves
        assert len(moves) == shards
        assert max(map(len, moves)) <= size * (4 - floor)


@pytest.mark.parametrize("ranks", [1, 2, 5, 9])
def test_more_ranks_than_tokens(ranks):
    deal = plan_of([3, 2, 1]).deal(StepKind.REFRESH, ranks)
    assert sum(deal.counts) == 3
    assert max(deal.counts) == (1 if ranks > 2 else 3 // ranks + 3 % ranks)
    assert [deal.own(rank).numel() for rank in range(ranks)] == list(deal.counts)


@given(level_lists, level_lists)
def test_digests_are_equal_for_equal_maps_only(one, other):
    digest = plan_of(one).digest()
    assert len(digest) == 32
    assert digest == plan_of(list(one)).digest()
    assert (digest == plan_of(other).digest()) == (one == other)


def test_digests_of_plans_in_the_same_order_differ():
    """All static and all active have the same order, and other counts."""
    assert len({plan_of([level] * 6).digest() for level in (1, 2, 3)}) == 3
    assert plan_of([3, 3, 1]).digest() != plan_of([3, 2, 1]).digest()


@given(
    levels=level_lists,
    text=st.integers(0, 9),
    shards=st.integers(1, 3),
    size=st.integers(1, 3),
    kind=st.sampled_from([StepKind.REFRESH, StepKind.MODERATE, StepKind.ACTIVE]),
)
def test_without_text_the_others_stay_where_they_are(levels, text, shards, size, kind):
    """Row by row: each token is on the same rank, and in its shard's buffers behind the same tokens."""
    plan = TokenPlan.from_levels(torch.tensor(levels, dtype=torch.uint8), text)
    both = plan.deal(kind, shards * size, shards)
    alone = both.without_text
    assert alone.sequence_counts == alone.counts == both.counts
    assert torch.equal(alone.rows, both.rows)
    for shard in range(shards):
        ranks = range(shard * size, (shard + 1) * size)
        names = [
            name
            for rank in ranks
            for name in (*("text" for _ in both.own_text(rank)), *both.own(rank).tolist())
        ]
        placed = {to + step: names[at + step] for at, to, run in both.moves[shard] for step in range(run)}
        wanted = [placed[place] for place in sorted(placed) if placed[place] != "text"]
        own = [token for rank in ranks for token in both.own(rank).tolist()]
        found = {to + step: own[at + step] for at, to, run in alone.moves[shard] for step in range(run)}
        assert [found[place] for place in range(len(own))] == wanted


def test_a_deal_is_made_once():
    """Steps of a kind share their tensors; other ranks, shards, kinds and maps have their own."""
    plan = plan_of([3, 1, 2, 3])
    first = plan.deal(StepKind.ACTIVE, 2)
    assert plan.deal(StepKind.ACTIVE, 2) is first
    others = [plan.deal(StepKind.ACTIVE, 1), plan.deal(StepKind.REFRESH, 2), plan.deal(StepKind.ACTIVE, 2, 2)]
    assert all(other is not first for other in [*others, plan_of([3, 1, 2, 3]).deal(StepKind.ACTIVE, 2)])
    assert [other.counts for other in others] == [(2,), (2, 2), (1, 1)]
