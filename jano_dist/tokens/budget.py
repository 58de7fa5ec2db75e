"""How many tokens each step computes, where a policy chooses them anew in every step."""

import math
from collections.abc import Mapping
from itertools import accumulate, cycle, islice, pairwise
from typing import Any

from jano_dist.tokens.schedule import StepKind, check_middle


def step_counts(policy: Mapping[str, Any], *, steps: int, tokens: int) -> list[int]:
    """Tokens that each step between warm-up and cool-down computes; the first computes all.

    Args:
        policy: the policy's section of the config, of `ras`, `hsa` or `astraea`.
        steps: of the generation. tokens: N.

    Raises:
        ValueError: no step is left between warm-up and cool-down.
    """
    check_middle(steps, policy["warmup"], policy["cooldown"])
    middle = steps - policy["warmup"] - policy["cooldown"]
    match policy["name"]:
        case "ras":  # every so many steps all tokens
            period = [tokens, *[part(policy["ratio"], tokens)] * (policy["reset_interval"] - 1)]
            return list(islice(cycle(period), middle))
        case "hsa":
            groups = list(zip(policy["divisors"], group_sizes(policy["shares"], tokens), strict=True))
            return [sum(size for every, size in groups if step % every == 0) for step in range(middle)]
        case "astraea":
            later = (part(share, tokens) for share in cycle(policy["budgets"]))
            return [tokens, *islice(later, middle - 1)]
    raise KeyError(policy["name"])


def part(share: float, tokens: int) -> int:
    """The tokens of a share; a broken one counts. What a product of floats is off by does not."""
    return math.ceil(round(share * tokens, 6))


def group_sizes(shares: tuple[float, ...], tokens: int) -> list[int]:
    """Sizes of neighbouring groups with these shares of the tokens; they sum to `tokens`."""
    ends = [part(share, tokens) for share in accumulate(shares, initial=0.0)]
    return [last - first for first, last in pairwise([*ends[:-1], tokens])]


def kind_of(count: int, tokens: int) -> StepKind:
    """The kind of a step that computes `count` of the tokens."""
    if count == tokens:
        return StepKind.REFRESH
    return StepKind.CHOSEN if count else StepKind.SKIP
