"""Complexity map -> the order of the tokens, the rows each step kind computes, and who computes them."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from jano_dist.tokens.complexity import ACTIVE, MODERATE, STATIC
from jano_dist.tokens.schedule import StepKind

# The lowest level a step kind still computes.
_LOWEST_LEVEL = {
    StepKind.FULL: STATIC,
    StepKind.REFRESH: STATIC,
    StepKind.MODERATE: MODERATE,
    StepKind.ACTIVE: ACTIVE,
}


# Bucket order: what is computed most often comes first.
_BUCKETS = (ACTIVE, MODERATE, STATIC)


@dataclass(frozen=True)
class Deal:
    """The tokens one step kind computes, dealt over the ranks that share a sequence.

    Attributes:
        rows: int64 [n], token indices; rank 0's first, then rank 1's, as they lie after a gather.
        counts: how many of them each rank computes; they differ by at most one.
        moves: (from, to, length) of the runs of `rows` that lie together in the buckets' order, where
            every bucket holds rank 0's tokens first, then rank 1's: the order of the K/V buffers.
    """

    rows: Tensor
    counts: tuple[int, ...]
    moves: tuple[tuple[int, int, int], ...]

    def own(self, rank: int) -> Tensor:
        """Token indices that `rank` computes."""
        first = sum(self.counts[:rank])
        return self.rows[first : first + self.counts[rank]]


@dataclass(frozen=True)
class TokenPlan:
    """Tokens ordered active, moderate, static, so that every step kind computes a prefix.

    Made once from the map; deterministic, so only the map is ever sent between ranks.

    Attributes:
        order: int64 [N], plan position -> token index in natural (t, h, w) order.
        counts: level -> number of tokens that have it.
    """

    order: Tensor
    counts: dict[int, int]

    @classmethod
    def from_levels(cls, levels: Tensor) -> "TokenPlan":
        """Order the tokens of a complexity map uint8 [N]. The order inside a level stays the natural one.

        Raises:
            ValueError: not one-dimensional, or a level outside STATIC..ACTIVE.
        """
        if levels.ndim != 1 or bool(((levels < STATIC) | (levels > ACTIVE)).any()):
            raise ValueError("a complexity map is uint8 [N] with levels 1 (static), 2 (moderate), 3 (active)")
        order = torch.argsort(levels.to(torch.int64), descending=True, stable=True)
        counts = {level: int((levels == level).sum()) for level in (STATIC, MODERATE, ACTIVE)}
        return cls(order, counts)

    @classmethod
    def natural(cls, tokens: int, device: torch.device | str = "cpu") -> "TokenPlan":
        """The plan before any map is known: every token active, in natural order."""
        return cls.from_levels(torch.full((tokens,), ACTIVE, dtype=torch.uint8, device=device))

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

    def deal(self, kind: StepKind, ranks: int) -> Deal:
        """Who computes what in a step of this kind: plan position p belongs to rank p % `ranks`.

        So every bucket, and every prefix of the plan, is dealt evenly to one token.
        """
        runs: dict[tuple[int, int], range] = {}  # (rank, level) -> plan positions
        first = 0
        for level in _BUCKETS:
            if level >= _LOWEST_LEVEL[kind]:
                last = first + self.counts[level]
                for rank in range(ranks):
                    runs[rank, level] = range(first + (rank - first) % ranks, last, ranks)
                first = last
        by_rank = sorted(runs, key=lambda run: run[0])  # stable, so a rank's buckets stay in order
        rows = [self.order[r.start : r.stop : ranks] for r in map(runs.__getitem__, by_rank)]
        counts = tuple(sum(len(runs[run]) for run in runs if run[0] == rank) for rank in range(ranks))
        return Deal(torch.cat(rows), counts, _moves(by_rank, runs))

    def digest(self) -> bytes:
        """32 bytes that tell two plans apart."""
        counts = repr([self.counts[level] for level in _BUCKETS]).encode()
        return hashlib.sha256(counts + self.order.cpu().numpy().tobytes()).digest()

    def shares(self) -> dict[str, float]:
        """Fraction of the tokens at each level; the three sum to 1."""
        names = {"static": STATIC, "moderate": MODERATE, "active": ACTIVE}
        return {name: self.counts[level] / self.tokens for name, level in names.items()}


def _moves(
    by_rank: list[tuple[int, int]], runs: dict[tuple[int, int], range]
) -> tuple[tuple[int, int, int], ...]:
    """Where each run of the gathered rows goes in the buckets' order; neighbours are joined."""
    places, place = {}, 0
    for run, positions in runs.items():  # bucket by bucket, rank by rank
        places[run] = place
        place += len(positions)
    moves: list[tuple[int, int, int]] = []
    start = 0
    for run in by_rank:
        length = len(runs[run])
        if moves and moves[-1][1] + moves[-1][2] == places[run]:
            moves[-1] = (*moves[-1][:2], moves[-1][2] + length)
        elif length:
            moves.append((start, places[run], length))
        start += length
    return tuple(moves)
