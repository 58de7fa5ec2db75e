"""Does the gain of the sparse steps survive the ranks? Jano over `full`, on 1 process and on 2 ranks.

Retention = (full seconds / jano seconds on 2 ranks) / (the same on 1 process), of the denoising loop alone.
A loop's seconds are composed: for each step kind the median seconds of such a step times how many the loop
has. `full` is run for a few steps only, because all of its steps cost the same; jano's loop is run whole, and
the plain sum of its steps, first step and map making included, is given beside as `jano_sum_seconds`.

All meshes and policies take turns inside one pair of ranks; while one process computes alone the other
waits, so every figure sees the same machine.
"""

import argparse
from collections import Counter
from statistics import median
from typing import Any

import torch.distributed as dist

from benchmarks.common import PROMPTS, Undecoded, on_ranks, save
from jano_dist import Engine, load_config
from jano_dist.mesh import Mesh

ALONE = "1 process"
MESHES = {ALONE: None, "ulysses 2": {"ulysses": 2}, "kv 2": {"kv": 2}, "cfg 2": {"cfg": 2}}
FULL_STEPS = 8
# Every step kind once, to fill the allocator.
WARM_UP = {"sampling.steps": 5, "policy.warmup": 2, "policy.cooldown": 0, "policy.moderate_interval": 2}


def measure(overrides: dict[str, Any], preset: str, rounds: int) -> list[dict[str, Any]]:
    """Every mesh and policy in turns; the record of each generation, on the coordinator."""
    model = Undecoded(Engine(load_config("wan-tiny", overrides=overrides), mesh=Mesh.single()).model)
    runs = []
    for turn in range(-1, rounds):  # turn -1 is short and warms up
        changes = {"full": {"sampling.steps": FULL_STEPS}, "jano": {}} if turn >= 0 else {"jano": WARM_UP}
        for name, degrees in MESHES.items():
            for policy, change in changes.items():
                dist.barrier()
                if degrees is None and dist.get_rank() > 0:
                    continue  # waits in the next barrier
                config = load_config(
                    "wan-tiny", policy=policy, preset=preset, overrides={**overrides, **change}
                )
                mesh = Mesh.single() if degrees is None else Mesh(**degrees, timeout_seconds=1000)
                record = Engine(config, model=model, mesh=mesh).generate(PROMPTS[0], seed=0).record
                if turn >= 0:
                    runs.append({"mesh": name, "policy": policy, "record": record})
    return runs


def step_kinds(runs: list[dict[str, Any]], mesh: str, policy: str) -> dict[str, dict[str, float]]:
    """Per step kind: how many a loop has, and the medians of such a step."""
    loops = [run["record"]["steps"] for run in runs if (run["mesh"], run["policy"]) == (mesh, policy)]
    counts = Counter(step["kind"] for step in loops[0])
    steps = [step for loop in loops for step in loop]
    return {
        kind: {
            "steps": count,
            **{
                key: median(step[key] for step in steps if step["kind"] == kind)
                for key in ("tokens", "seconds", "comm_seconds", "comm_bytes")
            },
        }
        for kind, count in sorted(counts.items())
    }


def of_mesh(runs: list[dict[str, Any]], mesh: str, steps: int) -> dict[str, Any]:
    """Seconds of a `full` and of a jano loop of so many steps, and what they are made of."""
    full, jano = (step_kinds(runs, mesh, policy) for policy in ("full", "jano"))
    full_seconds = steps * full["full"]["seconds"]
    jano_seconds = sum(kind["steps"] * kind["seconds"] for kind in jano.values())
    loops = [run["record"]["steps"] for run in runs if (run["mesh"], run["policy"]) == (mesh, "jano")]
    return {
        "full_seconds": full_seconds,
        "jano_seconds": jano_seconds,
        "jano_sum_seconds": median(sum(step["seconds"] for step in loop) for loop in loops),
        "gain": full_seconds / jano_seconds,
        "full_step_seconds": full["full"]["seconds"],
        "kinds": jano,
    }


def summary(runs: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    rows = {mesh: of_mesh(runs, mesh, steps) for mesh in MESHES}
    alone = rows[ALONE]
    for mesh, row in rows.items():
        row["retention"] = row["gain"] / alone["gain"]
        sums = alone["jano_sum_seconds"] / row["jano_sum_seconds"]
        row["full_over_1_process"] = alone["full_seconds"] / row["full_seconds"]
        row["retention_of_sums"] = sums / row["full_over_1_process"]
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
    limits = {"timeout": 3000, "collective_timeout": 1000}
    ranks, threads = on_ranks(2, measure, overrides, args.preset, args.rounds, **limits)
    record = ranks[0][-1]["record"]
    tokens = record["steps"][0]["tokens"]
    figures = {
        "tokens": tokens,
        "preset": args.preset,
        "rounds": args.rounds,
        "levels": record["levels"],
        "meshes": summary(ranks[0], args.steps),
    }
    save(f"retention-{tokens}-tokens-{args.steps}-steps", figures, threads)


if __name__ == "__main__":
    main()
