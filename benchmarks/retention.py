"""Does the gain of the sparse steps survive the ranks? Jano over `full`, on 1 process and on 2 ranks.

Retention = (full seconds / jano seconds on 2 ranks) / (the same on 1 process), of the denoising loop alone.
A loop's seconds are composed: for each step kind the median seconds of such a step, times how many the loop
has. The steps measured are those of a jano loop, with some more full steps put between them, so that full and
sparse steps see the same machine. The plain sum of jano's steps, the first ones of each kind included, is
given beside (`jano_sum_seconds`), with the retention that follows from it.

One pair of ranks goes through all meshes; while one process computes alone the other waits.
"""

import argparse
from collections import Counter
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.common import PROMPTS, Undecoded, on_ranks, save
from jano_dist import Config, Engine, load_config
from jano_dist.mesh import Mesh
from jano_dist.policies import Policy
from jano_dist.tokens.schedule import Schedule, StepKind

ALONE = "1 process"
MESHES = {ALONE: None, "ulysses 2": {"ulysses": 2}, "kv 2": {"kv": 2}, "cfg 2": {"cfg": 2}}
FULL_BETWEEN = 8  # at most


class Interleaved(Policy):
    """Policy: jano's schedule on a map given from outside, with full steps between the sparse ones.

    Attributes:
        walk: of every step its kind, and whether it is one of those put between.
    """

    def __init__(self, config: Config, levels: Tensor | None) -> None:
        jano = config.policy
        schedule = Schedule(
            config.sampling.steps, jano.warmup, jano.cooldown, jano.static_interval, jano.moderate_interval
        )
        sparse = schedule.steps - schedule.warmup - schedule.cooldown
        every = -(-sparse // FULL_BETWEEN)
        self.walk: list[tuple[StepKind, bool]] = []
        for step in range(schedule.steps):
            self.walk.append((schedule.kind(step), False))
            if 0 <= step - jano.warmup < sparse and (step - jano.warmup) % every == every - 1:
                self.walk.append((StepKind.FULL, True))
        self._levels, self._mapped = levels, jano.warmup - 1

    def decide(self, step: int) -> StepKind:
        return self.walk[step][0]

    def observe(self, step: int, velocity: Tensor) -> Tensor | None:
        return self._levels if step == self._mapped else None


def measure(config: Config, rounds: int) -> dict[str, Any]:
    """The steps of every mesh, one after the other; on the coordinator, whose map is used."""
    first = Engine(config, mesh=Mesh.single())
    model = Undecoded(first.model)
    levels = None
    if dist.get_rank() == 0:  # a whole jano loop, which also warms up
        made = Engine(config, model=model, mesh=Mesh.single()).generate(PROMPTS[0], seed=0)
        levels = torch.from_numpy(made.levels).flatten()
    steps: dict[str, list[dict[str, Any]]] = {name: [] for name in MESHES}
    for name, degrees in rounds * list(MESHES.items()):
        dist.barrier()
        if degrees is None and dist.get_rank() > 0:
            continue  # waits in the next barrier
        mesh = Mesh.single() if degrees is None else Mesh(**degrees, timeout_seconds=1000)
        policy = Interleaved(config, levels)
        steps[name] += loop(config, model, mesh, policy)
    return {"steps": steps, "levels": made.record["levels"]} if levels is not None else {}


def loop(config: Config, model: Any, mesh: Mesh, policy: Interleaved) -> list[dict[str, Any]]:
    """Step records of one generation; `between` says which ones jano would not have made."""
    sampling = config.sampling.model_copy(update={"steps": len(policy.walk)})
    config = config.model_copy(update={"sampling": sampling})
    engine = Engine(config, model=model, mesh=mesh, policies=lambda *_, **__: policy)
    mesh.time_collectives()
    steps = engine.generate(PROMPTS[0], seed=0).record["steps"]
    return [{**step, "between": between} for step, (_, between) in zip(steps, policy.walk, strict=True)]


def of_kind(steps: list[dict[str, Any]], kind: str, rounds: int) -> dict[str, float]:
    """How many steps of this kind a jano loop has, and the medians of one."""
    these = [step for step in steps if step["kind"] == kind]
    keys = ("tokens", "seconds", "comm_seconds", "comm_bytes")
    medians = {key: median(step[key] for step in these) for key in keys}
    return {"steps": sum(not step["between"] for step in these) // rounds, **medians}


def of_mesh(steps: list[dict[str, Any]], count: int, rounds: int) -> dict[str, Any]:
    """Seconds of a `full` and of a jano loop of so many steps, and what they are made of."""
    kinds = {kind: of_kind(steps, kind, rounds) for kind in sorted(Counter(s["kind"] for s in steps))}
    full_seconds = count * kinds["full"]["seconds"]
    jano_seconds = sum(kind["steps"] * kind["seconds"] for kind in kinds.values())
    jano_sum = sum(step["seconds"] for step in steps if not step["between"]) / rounds
    return {
        "full_seconds": full_seconds,
        "jano_seconds": jano_seconds,
        "jano_sum_seconds": jano_sum,
        "gain": full_seconds / jano_seconds,
        "gain_of_sum": full_seconds / jano_sum,
        "kinds": kinds,
    }


def summary(steps: dict[str, list[dict[str, Any]]], count: int, rounds: int) -> dict[str, Any]:
    rows = {mesh: of_mesh(each, count, rounds) for mesh, each in steps.items()}
    alone = rows[ALONE]
    for mesh, row in rows.items():
        row["retention"] = row["gain"] / alone["gain"]
        row["retention_of_sum"] = row["gain_of_sum"] / alone["gain_of_sum"]
        row["full_over_1_process"] = alone["full_seconds"] / row["full_seconds"]
        print(mesh, {key: round(value, 3) for key, value in row.items() if key != "kinds"})
        for kind, figures in row["kinds"].items():
            print("   ", kind, {key: round(value, 4) for key, value in figures.items()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=33)
    parser.add_argument("--size", type=int, default=256, help="height and width in pixels")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--preset", default="balanced")
    args = parser.parse_args()
    overrides = {
        "video.frames": args.frames,
        "video.height": args.size,
        "video.width": args.size,
        "sampling.steps": args.steps,
    }
    config = load_config("wan-tiny", preset=args.preset, overrides=overrides)
    limits = {"timeout": 3000, "collective_timeout": 1000}
    ranks, threads = on_ranks(2, measure, config, args.rounds, **limits)
    steps = ranks[0]["steps"]
    tokens = steps[ALONE][0]["tokens"]
    figures = {
        "tokens": tokens,
        "preset": args.preset,
        "rounds": args.rounds,
        "levels": ranks[0]["levels"],
        "meshes": summary(steps, args.steps, args.rounds),
    }
    save(f"retention-{tokens}-tokens-{args.steps}-steps", figures, threads)


if __name__ == "__main__":
    main()
