"""Complexity map -> the order of the tokens, the rows each step kind computes, and who computes them."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from jano_dist.tokens.complexity import ACTIVE, MODERATE, STATIC
from jano_dist.tokens.schedule import StepKind

# Text tokens of a joint model are above all levels of the map: every step that runs computes them.
TEXT = ACTIVE + 1

# The lowest level a step kind still computes.
_LOWEST_LEVEL = {
    StepKind.FULL: STATIC,
    StepKind.REFRESH: STATIC,
    StepKind.MODERATE: MODERATE,
    StepKind.ACTIVE: ACTIVE,
    StepKind.BLOCKS: STATIC,
    StepKind.SKIP: TEXT + 1,
}


# (from, to, length) of runs of rows.
Moves = tuple[tuple[int, int, int], ...]

# Bucket order: what is computed most often comes first.
_BUCKETS = (TEXT, ACTIVE, MODERATE, STATIC)


@dataclass(frozen=True)
class Deal:
    """The tokens one step kind computes, dealt over the ranks that share a sequence.

    Attributes:
        rows: int64 [n], token indices; rank 0's first, then rank 1's, as they lie after a gather.
        counts: how many of them each rank computes; with the text tokens they differ by at most one.
        moves: for each shard (neighbouring ranks that keep their tokens' K/V together) the (from, to,
            length) of the runs of its rows that lie together in its buffers, where every bucket holds
            its first rank's tokens first, then the second's.
        text: int64 [m], text tokens of a joint model, the same way; a rank's come before its other rows.
        text_counts: how many of them each rank computes.
    """

    rows: Tensor
    counts: tuple[int, ...]
    moves: tuple[Moves, ...]
    text: Tensor
    text_counts: tuple[int, ...]

    @property
    def sequence_counts(self) -> tuple[int, ...]:
        """Rows that each rank brings to attention, text included."""
        return tuple(map(sum, zip(self.counts, self.text_counts, strict=True)))

    def own(self, rank: int) -> Tensor:
        """Token indices that `rank` computes."""
        first = sum(self.counts[:rank])
        return self.rows[first : first + self.counts[rank]]

    def own_text(self, rank: int) -> Tensor:
        """Text tokens that `rank` computes."""
        first = sum(self.text_counts[:rank])
        return self.text[first : first + self.text_counts[rank]]

    @cached_property
    def without_text(self) -> "Deal":
        """The same tokens on the same ranks, in buffers of their own that hold no text."""
        size, moves = len(self.counts) // len(self.moves), []
        for shard, own in enumerate(self.moves):
            ranks = slice(shard * size, (shard + 1) * size)
            texts = self.text_counts[ranks]
            video = [
                torch.arange(text + count) >= text
                for text, count in zip(texts, self.counts[ranks], strict=True)
            ]
            moves.append(_runs(_places(own)[torch.cat(video)] - sum(texts)))
        return Deal(self.rows, self.counts, tuple(moves), self.text[:0], (0,) * len(self.counts))


@dataclass(frozen=True)
class TokenPlan:
    """Tokens ordered active, moderate, static, so that every step kind computes a prefix.

    Made once from the map; deterministic, so only the map is ever sent between ranks.

    Attributes:
        order: int64 [N], plan position -> token index in natural (t, h, w) order.
        counts: level -> number of tokens that have it.
        text: text tokens of a joint model, which come before all others in the plan.
    """

    order: Tensor
    counts: dict[int, int]
    text: int = 0
    # Made once each: steps of a kind share their tensors.
    _deals: dict[tuple[StepKind, int, int], Deal] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def from_levels(cls, levels: Tensor, text: int = 0) -> "TokenPlan":
        """Order the tokens of a complexity map uint8 [N]. The order inside a level stays the natural one.

        Raises:
            ValueError: not one-dimensional, or a level outside STATIC..ACTIVE.
        """
        if levels.ndim != 1 or bool(((levels < STATIC) | (levels > ACTIVE)).any()):
            raise ValueError("a complexity map is uint8 [N] with levels 1 (static), 2 (moderate), 3 (active)")
        order = torch.argsort(levels.to(torch.int64), descending=True, stable=True)
        counts = {level: int((levels == level).sum()) for level in (STATIC, MODERATE, ACTIVE)}
        return cls(order, counts, text)

    @classmethod
    def natural(cls, tokens: int, device: torch.device | str = "cpu", text: int = 0) -> "TokenPlan":
        """The plan before any map is known: every token active, in natural order."""
        return cls.from_levels(torch.full((tokens,), ACTIVE, dtype=torch.uint8, device=device), text)

    @property
    def tokens(self) -> int:
        """N, all tokens of the video."""
        return self.order.numel()

    def count(self, kind: StepKind) -> int:
        """How many tokens a step of this kind computes."""
        return sum(count for level, count in self.counts.items() if level >= _LOWEST_LEVEL[kind])

    def rows(self, kind: StepKind) -> Tensor:
        """Token indices int64 [count(kind)] a step of this kind computes: a prefix of the order."""
        return self.order[: self.count(kind)]

    def deal(self, kind: StepKind, ranks: int, shards: int = 1) -> Deal:
        """Who computes what in a step of this kind: plan position p belongs to rank p % `ranks`.

        So every bucket, and every prefix of the plan, is dealt evenly to one token.

        Args:
            kind: of the step.
            ranks: that share the sequence.
            shards: into how many equal groups of neighbours they are divided; see `Deal.moves`.
        """
        key = kind, ranks, shards
        if key not in self._deals:
            self._deals[key] = self._dealt(*key)
        return self._deals[key]

    def _dealt(self, kind: StepKind, ranks: int, shards: int) -> Deal:
        runs: list[list[range]] = [[] for _ in range(ranks)]  # plan positions, per rank and bucket
        first = 0
        for level in _BUCKETS:
            if level >= _LOWEST_LEVEL[kind]:
                last = first + self._size(level)
                for rank in range(ranks):
                    runs[rank].append(range(first + (rank - first) % ranks, last, ranks))
                first = last
        size = ranks // shards
        moves = tuple(_moves(runs[shard * size : (shard + 1) * size]) for shard in range(shards))
        texts = [own[0] if own else range(0) for own in runs]
        rows = [self._order_of(run) for own in runs for run in own[1:]]
        every_text = torch.arange(self.text, device=self.order.device)
        text = [every_text[run.start : run.stop : ranks] for run in texts]
        return Deal(
            rows=torch.cat([self.order[:0], *rows]),
            counts=tuple(sum(map(len, own[1:])) for own in runs),
            moves=moves,
            text=torch.cat([self.order[:0], *text]),
            text_counts=tuple(map(len, texts)),
        )

    def _size(self, level: int) -> int:
        """Plan positions of a bucket."""
        return self.text if level == TEXT else self.counts[level]

    def _order_of(self, positions: range) -> Tensor:
        """Token indices at plan positions behind the text."""
        return self.order[positions.start - self.text : max(positions.stop - self.text, 0) : positions.step]

    def deal_chosen(self, chosen: Tensor, ranks: int, shards: int = 1) -> Deal:
        """Like `deal`, for tokens chosen bool [N] for one step: each is computed by the rank that has it."""
        every = self.deal(StepKind.REFRESH, ranks, shards)
        parts = every.rows.split(every.counts)
        kept = [chosen[part] for part in parts]
        texts = [chosen.new_ones(count) for count in every.text_counts]
        all_kept = [torch.cat(pair) for pair in zip(texts, kept, strict=True)]
        size, moves = ranks // shards, []
        for shard, own in enumerate(every.moves):
            mask = torch.cat(all_kept[shard * size : (shard + 1) * size]).cpu()
            moves.append(_runs(_places(own)[mask]))
        rows = torch.cat([part[mask] for part, mask in zip(parts, kept, strict=True)])
        counts = tuple(int(mask.sum()) for mask in kept)
        return Deal(rows, counts, tuple(moves), every.text, every.text_counts)

    def digest(self) -> bytes:
        """32 bytes that tell two plans apart."""
        counts = repr([self._size(level) for level in _BUCKETS]).encode()
        return hashlib.sha256(counts + self.order.cpu().numpy().tobytes()).digest()

    def shares(self) -> dict[str, float]:
        """Fraction of the tokens at each level; the three sum to 1."""
        names = {"static": STATIC, "moderate": MODERATE, "active": ACTIVE}
        return {name: self.counts[level] / self.tokens for name, level in names.items()}


def _places(moves: Moves) -> Tensor:
    """Where each row goes, in the order of the rows: int64 [n]."""
    return torch.cat([torch.arange(0), *(torch.arange(to, to + length) for _, to, length in moves)])


def _runs(places: Tensor) -> Moves:
    """Where rows that lie one after the other go, as (from, to, length); neighbours are joined."""
    first = torch.ones(min(len(places), 1), dtype=torch.bool)
    starts = torch.cat((first, places.diff() != 1)).nonzero()[:, 0]
    lengths = starts.diff(append=torch.tensor([len(places)]))
    return tuple(zip(starts.tolist(), places[starts].tolist(), lengths.tolist(), strict=True))


def _moves(runs: list[list[range]]) -> Moves:
    """Where the runs [rank][bucket] of gathered rows go in the buckets' order; neighbours are joined."""
    places, place = {}, 0
    for bucket in range(len(runs[0])):
        for rank, own in enumerate(runs):
            places[rank, bucket] = place
            place += len(own[bucket])
    moves: list[tuple[int, int, int]] = []
    start = 0
    for rank, own in enumerate(runs):
        for bucket, run in enumerate(own):
            if moves and moves[-1][1] + moves[-1][2] == places[rank, bucket]:
                moves[-1] = (*moves[-1][:2], moves[-1][2] + len(run))
            elif run:
                moves.append((start, places[rank, bucket], len(run)))
            start += len(run)
    return tuple(moves)
