"""Figures of `jano-dist bench scaling` from its finished parts. No torch.

gain = seconds of `full` / seconds of the policy, on the same ranks and mesh, in the same round.
retention = gain on n ranks / gain on the fewest.
retention_of_kinds = the same of loops composed from the median seconds of each kind of step over all rounds,
which a single slow step does not move.
efficiency = fewest x seconds on the fewest / (n x seconds on n).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any, NamedTuple

FULL = "full"
Part = Mapping[str, Any]


class Key(NamedTuple):
    """A row of the table."""

    world: int
    mesh: str
    side: str


def summarise(parts: Sequence[Part]) -> dict[str, Any]:
    """Rows, in order of ranks; peers that did not run, with the reason; and where ranks shared cores."""
    done: dict[Key, dict[int, Part]] = {}
    for part in parts:
        if "not_run" not in part:
            done.setdefault(_key(part), {})[part["round"]] = part
    skipped = {(part["world"], part["side"]): part["not_run"] for part in parts if "not_run" in part}
    fewest = min((key.world for key in done), default=0)
    rows = [_row(key, done, fewest) for key in sorted(done)]
    return {
        "fewest_ranks": fewest,
        "rows": rows,
        "not_run": [{"ranks": world, "side": side, "reason": why} for (world, side), why in skipped.items()],
        "crowded_ranks": sorted({part["world"] for part in parts if part["crowded"]}),
    }


def _key(part: Part) -> Key:
    mesh = "x".join(str(part["mesh"][dim]) for dim in ("cfg", "kv", "ulysses"))
    return Key(part["world"], mesh, part["side"])


def _row(key: Key, done: Mapping[Key, Mapping[int, Part]], fewest: int) -> dict[str, Any]:
    rounds = done[key]
    base = _fastest(done, fewest, key.side)
    full = done.get(key._replace(side=FULL), {})
    base_full = done.get(base._replace(side=FULL), {}) if base else {}
    seconds = {turn: total(part) for turn, part in rounds.items()}
    is_peer = any(part["peer"] for part in rounds.values())
    compared = key.side != FULL and not is_peer
    gains = _ratios(full, rounds) if compared else {}
    base_gains = _ratios(base_full, done[base]) if compared and base else {}
    row = {
        **key._asdict(),
        "peer": is_peer,
        "rounds": len(rounds),
        "seconds": spread(seconds.values()),
        "kinds": kinds(rounds.values()),
        "gain": spread(gains.values()),
        "retention": spread(gains[turn] / base_gains[turn] for turn in gains if turn in base_gains),
        "retention_of_kinds": (
            _composed_gain(full, rounds) / _composed_gain(base_full, done[base])
            if gains and base_gains and base
            else None
        ),
        "efficiency": _efficiency(key, seconds, done, base),
        "over_peers": _over_peers(key, seconds, done),
        **_measured_inside(list(rounds.values())),
    }
    return row


def total(part: Part) -> float:
    """Seconds of all steps of a run."""
    return float(sum(step["seconds"] for step in part["steps"]))


def spread(values: Any) -> dict[str, float] | None:
    """Median, lowest and highest; None of nothing."""
    found = sorted(values)
    return {"median": median(found), "lowest": found[0], "highest": found[-1]} if found else None


def kinds(parts: Any) -> dict[str, dict[str, float]]:
    """For each kind of step how many a run has, and the median seconds of one over all rounds."""
    each = list(parts)
    counts = Counter(step["kind"] for step in each[0]["steps"])
    return {
        kind: {
            "steps": number,
            "seconds": median(s["seconds"] for part in each for s in part["steps"] if s["kind"] == kind),
        }
        for kind, number in counts.items()
    }


def composed(parts: Any) -> float:
    """Seconds of a run whose every step takes the median of its kind."""
    return sum(kind["steps"] * kind["seconds"] for kind in kinds(parts).values())


def _composed_gain(full: Mapping[int, Part], rounds: Mapping[int, Part]) -> float:
    return composed(full.values()) / composed(rounds.values())


def imbalance(part: Part) -> float:
    """The slowest rank's own computing over the mean of all: seconds outside of collectives, all steps."""
    ranks = [step["ranks"] for step in part["steps"]]
    own = [
        sum(step["seconds"][rank] - step["comm_seconds"][rank] for step in ranks)
        for rank in range(len(ranks[0]["seconds"]))
    ]
    return float(max(own) / fmean(own))


def _measured_inside(parts: list[Part]) -> dict[str, Any]:
    """What only our engine tells of itself; a peer's latent is compared with ours instead."""
    first = parts[0]
    if first["peer"]:
        found = [part["max_difference"] for part in parts if part["max_difference"] is not None]
        return {"max_difference": max(found, default=None)}
    communication = [sum(step["comm_seconds"] for step in part["steps"]) / total(part) for part in parts]
    return {
        "bytes_sent": max(sum(step["comm_bytes"] for step in part["steps"]) for part in parts),
        "communication_share": median(communication),
        "imbalance": median(imbalance(part) for part in parts),
        "active": first["levels"].get("active"),
        "work": first["work"],
        "cache_bytes_per_rank": first["memory"]["cache_bytes_per_rank"],
        "peak_bytes_per_rank": max(part["memory"]["peak_bytes_per_rank"] for part in parts),
    }


def _ratios(full: Mapping[int, Part], rounds: Mapping[int, Part]) -> dict[int, float]:
    """Gain in each round that has both."""
    return {turn: total(full[turn]) / total(part) for turn, part in rounds.items() if turn in full}


def _fastest(done: Mapping[Key, Mapping[int, Part]], world: int, side: str) -> Key | None:
    """The fastest mesh of so many ranks for a side."""
    own = [key for key in done if key.world == world and key.side == side]
    return min(own, key=lambda key: median(map(total, done[key].values())), default=None)


def _efficiency(
    key: Key, seconds: Mapping[int, float], done: Mapping[Key, Mapping[int, Part]], base: Key | None
) -> dict[str, float] | None:
    """In each round that has both."""
    if base is None:
        return None
    before = {turn: total(part) for turn, part in done[base].items()}
    both = [turn for turn in seconds if turn in before]
    return spread(base.world * before[turn] / (key.world * seconds[turn]) for turn in both)


def _over_peers(
    key: Key, seconds: Mapping[int, float], done: Mapping[Key, Mapping[int, Part]]
) -> dict[str, dict[str, float] | None]:
    """Peer's seconds over ours, on as many ranks, in the same round: above 1 ours is faster."""
    found = {}
    for other, parts in done.items():
        theirs = {turn: total(part) for turn, part in parts.items() if part["peer"] and turn in seconds}
        if other.world == key.world and other.side != key.side and theirs:
            found[other.side] = spread(theirs[turn] / seconds[turn] for turn in theirs)
    return found
