"""What `jano-dist tune` may choose from: settings of every policy that the config knows. No torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from jano_dist.bench.cases import Case, full_config
from jano_dist.bench.search import FULL, Candidate, Target
from jano_dist.config import Config
from jano_dist.config.policies import POLICIES
from jano_dist.errors import UserError

MOST = 60  # candidates
FEWER = "fewer steps"
_SHARES = (0.85, 0.75, 0.67, 0.6, 0.5, 0.44, 0.4, 0.33, 0.25)  # of the steps, of the control
AS_IS = "as configured"  # the config's own policy, which is always tried
_CONTROLS = (FEWER, "uniform")  # families
_MARGIN = 1.0  # dB by which a prediction must be worse before it counts
_ALIKE = 0.005  # of the full run's work: less is no difference
_FASTEST_KEPT = 8  # where no candidate seems to be fast enough, so that the best can be told

_WORDS = {"hold": "held", "forecast": "extrapolated"}


@dataclass(frozen=True)
class Prediction:
    """What the stored velocities of full runs foretell of a candidate.

    Attributes:
        work: share of the full run's.
        error: of the last latent, in dB below the latent's own size; None where it cannot be foretold.
    """

    work: float
    error: float | None = None


def candidates(base: Config, presets: Sequence[Case] = ()) -> list[Candidate]:
    """At most `MOST` settings, each another config, none of them the full run's.

    Args:
        base: the config that is tuned.
        presets: rows that come with it.
    """
    found: dict[str, Candidate] = {}
    full = full_config(base).model_dump_json()
    for each in _all(base, presets):
        try:
            made = Case(each.name, each.changes).config(base).model_dump_json()
        except UserError:  # a setting that this config's others do not go with
            continue
        if made != full:
            found.setdefault(made, each)
    return spread(list(found.values()), {})[:MOST]


def spread(every: Sequence[Candidate], predicted: Mapping[str, Prediction]) -> list[Candidate]:
    """The same candidates in an order of which every beginning is a fair choice: in turn one of each family,
    and in a family always one from the middle of the longest stretch of work that is not yet seen."""
    families: dict[str, list[Candidate]] = {}
    for each in every:
        families.setdefault(each.family, []).append(each)
    queues = []
    for own in families.values():
        if all(each.name in predicted for each in own):
            own = sorted(own, key=lambda each: predicted[each.name].work)
        queues.append([own[index] for index in _from_the_middle(len(own))])
    ordered = []
    for turn in range(max(map(len, queues), default=0)):
        ordered += [queue[turn] for queue in queues if turn < len(queue)]
    return ordered


def prune(every: Sequence[Candidate], predicted: Mapping[str, Prediction], target: Target) -> dict[str, str]:
    """Name -> reason of each candidate that cannot win, as far as predictions tell.

    No gain: it takes all the work. Too slow: its share of the work is above 1 / speed-up. Dominated: another
    one of its family takes less work and its predicted error is lower by 1 dB and more; or takes the same
    work, and its error is no higher. Errors of different families are not compared, since each leaves out
    something else.
    """
    reasons = {
        name: "saves nothing" for name, prediction in predicted.items() if prediction.work >= 1 - _ALIKE
    }
    if target.speedup is not None:
        most = 1 / target.speedup
        slow = [each for each in every if each.name in predicted and predicted[each.name].work > most]
        rest = len(every) - len(slow)
        slow.sort(key=lambda each: predicted[each.name].work)
        for each in slow[max(0, _FASTEST_KEPT - rest) :]:
            reasons[each.name] = f"takes {predicted[each.name].work:.2f} of the work, too much"
    for place, each in enumerate(every):
        rivals = [other for other in every if other is not each and other.family == each.family]
        for other in rivals:
            if each.name in reasons or other.name in reasons:
                continue
            if _dominated(predicted.get(each.name), predicted.get(other.name), every.index(other) < place):
                reasons[each.name] = f"{other.name} is foretold to be better for no more work"
    reasons.pop(AS_IS, None)  # users want to know how theirs stands
    return reasons


def affordable(
    every: Sequence[Candidate],
    predicted: Mapping[str, Prediction],
    *,
    prompts: Sequence[int],
    full_cost: float,
    seconds: float,
) -> int:
    """How many candidates, from the first on, can be searched in a time; at least one.

    Args:
        prompts: of each rung. full_cost: seconds of a full run. seconds: that are left.
    """
    for size in range(len(every), 1, -1):
        shares = [predicted[each.name].work if each.name in predicted else 1.0 for each in every[:size]]
        mean, runs, alive, before = sum(shares) / size, 0.0, float(size), 0
        for count in prompts:
            runs += (count - before) * (1 + alive * mean)
            before, alive = count, max(1.0, alive / 2)
        if runs * full_cost <= seconds:
            return size
    return 1


def _dominated(own: Prediction | None, other: Prediction | None, earlier: bool) -> bool:
    if own is None or other is None or own.error is None or other.error is None:
        return False
    if abs(own.work - other.work) <= _ALIKE:  # of two that are alike in all the earlier one stays
        return other.error < own.error or (other.error == own.error and earlier)
    return other.work < own.work and other.error <= own.error - _MARGIN


def _from_the_middle(count: int) -> list[int]:
    """0..count-1, the middle first, then the middles of the halves, and so on."""
    order, stretches = [], [(0, count)]
    while stretches:
        first, last = stretches.pop(0)
        if first < last:
            middle = (first + last) // 2
            order.append(middle)
            stretches += [(first, middle), (middle + 1, last)]
    return order


def _all(base: Config, presets: Sequence[Case]) -> Iterator[Candidate]:
    own = base.policy.name
    if own != FULL:
        yield Candidate(AS_IS, own, {"policy.name": own}, own in _CONTROLS)
    for case in presets:
        name = str(case.changes["policy.name"])
        yield Candidate(case.name, name, case.changes, name in _CONTROLS)
    yield from _fewer_steps(base)
    for name, section in POLICIES.items():
        rows = _ROWS.get(name, ({},)) if name != FULL else ()
        for row in rows:
            yield Candidate(
                _named(name, row), name, _changes(base, name, section, row), control=name in _CONTROLS
            )


def _fewer_steps(base: Config) -> Iterator[Candidate]:
    steps = base.sampling.steps
    counts = {max(1, round(steps * share)) for share in _SHARES} - {steps}
    for count in sorted(counts, reverse=True):
        changes = {"policy.name": FULL, "sampling.steps": count}
        yield Candidate(f"{FEWER}, {count}", FEWER, changes, control=True)


def _changes(base: Config, name: str, section: type[BaseModel], row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of settings, and a warm-up that leaves something in between where there are few steps."""
    changes = {"policy.name": name, **{f"policy.{key}": value for key, value in row.items()}}
    own = base.policy if base.policy.name == name else None
    for key, share in (("warmup", 4), ("cooldown", 10)):
        if key in section.model_fields and key not in row:
            usual = getattr(own, key, None) or section.model_fields[key].default
            most = max(1, base.sampling.steps // share)
            if own is None and usual > most:
                changes[f"policy.{key}"] = max(2, most) if key == "warmup" else most
    return changes


def _named(policy: str, row: Mapping[str, Any]) -> str:
    match policy:
        case "forecast":
            return f"forecast {row['tau']:g}/{row['max_interval']}"
        case "uniform":
            return f"every {row['interval']} steps, {_WORDS[row['velocity']]}"
        case "jano":
            thresholds = f"{row['static_threshold']:g}/{row['moderate_threshold']:g}"
            intervals = f"{row['static_interval']}/{row['moderate_interval']}"
            return f"jano {thresholds}, {intervals}, {_WORDS[row['velocity']]}"
    values = ", ".join(f"{key} {value}" for key, value in row.items())
    return f"{policy} {values}" if values else policy


# Policy -> rows of settings; one that is not here has a single row, its defaults.
_ROWS: dict[str, Sequence[Mapping[str, Any]]] = {
    "forecast": [
        {"tau": tau, "max_interval": longest}
        for tau, longest in (
            (0.05, 2), (0.08, 3), (0.12, 3), (0.12, 4), (0.2, 4), (0.2, 6), (0.3, 6), (0.5, 8), (0.8, 10),
        )
    ],
    "uniform": [
        {"interval": interval, "velocity": velocity}
        for interval in (2, 3, 4, 6)
        for velocity in ("forecast", "hold")
    ],
    "jano": [
        {
            "static_threshold": static, "moderate_threshold": moderate,
            "static_interval": rest, "moderate_interval": between, "velocity": velocity,
        }
        for static, moderate in ((0.1, 0.3), (0.2, 0.5), (0.4, 0.7))
        for rest, between in ((4, 2), (6, 3), (8, 4))
        for velocity in ("forecast", "hold")
    ],
}  # fmt: skip
