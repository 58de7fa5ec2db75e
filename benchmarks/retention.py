"""Does the gain of the sparse steps shrink with the ranks? Jano over `full`, on 1 process and on 2 ranks.

Retention = (full seconds / jano seconds on 2 ranks) / (the same on 1 process), of the denoising loop.
All of it is measured in turns inside one pair of ranks; while one process computes alone the other
rests, so every figure sees the same machine. The loop's seconds are put together from its steps, each
kind at the least time any step of that kind took: other work on a machine only ever adds to it.
"""

import argparse
from typing import Any

import torch.distributed as dist

from benchmarks.common import PROMPTS, save
from jano_dist import Engine, load_config
from jano_dist.mesh import Mesh
from tests.gang.harness import gang

MESHES = {"1 process": None, "ulysses 2": {"ulysses": 2}, "cfg 2": {"cfg": 2}}
POLICIES = ("full", "jano")


def measure(overrides: dict[str, Any], preset: str, rounds: int) -> list[dict[str, Any]]:
    """Every mesh and policy in turns; the record of each generation, on the coordinator."""
    runs = []
    model = Engine(load_config("wan-tiny", overrides=overrides), mesh=Mesh.single()).model
    for turn in range(-1, rounds):  # turn -1 is short and warms up
        steps = {"sampling.steps": 10} if turn < 0 else {}
        for name, degrees in MESHES.items():
            for policy in POLICIES:
                dist.barrier()
                if degrees is None and dist.get_rank() > 0:
                    continue  # waits in the next barrier
                config = load_config(
                    "wan-tiny", policy=policy, preset=preset, overrides={**overrides, **steps}
                )
                mesh = Mesh.single() if degrees is None else Mesh(**degrees, timeout_seconds=1000)
                engine = Engine(config, model=model, mesh=mesh)
                record = engine.generate(PROMPTS[0], seed=0).record
                if turn >= 0:
                    runs.append({"turn": turn, "mesh": name, "policy": policy, "record": record})
    return runs


def seconds_of(runs: list[dict[str, Any]], mesh: str, policy: str) -> float:
    """Seconds of one denoising loop: its steps, each at the least its kind took in any turn."""
    turns = [run["record"]["steps"] for run in runs if (run["mesh"], run["policy"]) == (mesh, policy)]
    least: dict[str, float] = {}
    for step in (step for steps in turns for step in steps):
        least[step["kind"]] = min(step["seconds"], least.get(step["kind"], step["seconds"]))
    return sum(least[step["kind"]] for step in turns[0])


def step_kinds(runs: list[dict[str, Any]], mesh: str) -> dict[str, dict[str, float]]:
    """Per step kind of the jano runs: tokens and bytes of a step, least seconds and communication."""
    steps = [
        step
        for run in runs
        if (run["mesh"], run["policy"]) == (mesh, "jano")
        for step in run["record"]["steps"][2:]
    ]
    return {
        kind: {
            key: min(step[key] for step in steps if step["kind"] == kind)
            for key in ("tokens", "seconds", "comm_seconds", "comm_bytes")
        }
        for kind in sorted({step["kind"] for step in steps})
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    rows = {}
    for mesh in MESHES:
        full, jano = (seconds_of(runs, mesh, policy) for policy in POLICIES)
        rows[mesh] = {"full_seconds": full, "jano_seconds": jano, "gain": full / jano}
    for mesh, row in rows.items():
        row["retention"] = row["gain"] / rows["1 process"]["gain"]
        row["full_over_1_process"] = rows["1 process"]["full_seconds"] / row["full_seconds"]
        row["steps"] = step_kinds(runs, mesh)
        print(mesh, {key: round(value, 3) for key, value in row.items() if key != "steps"})
        for kind, figures in row["steps"].items():
            print("   ", kind, {key: round(value, 4) for key, value in figures.items()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=33)
    parser.add_argument("--size", type=int, default=256, help="height and width in pixels")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--preset", default="balanced")
    args = parser.parse_args()
    overrides = {
        "video.frames": args.frames,
        "video.height": args.size,
        "video.width": args.size,
        "sampling.steps": args.steps,
        "model.vae_parallel": "single",  # the decoding is not what is measured
    }
    runs = gang(2, measure, overrides, args.preset, args.rounds, timeout=3000, collective_timeout=1000)[0]
    tokens = runs[0]["record"]["steps"][0]["tokens"]
    rows = summary(runs)
    figures = {
        "tokens": tokens,
        "preset": args.preset,
        "rounds": args.rounds,
        "levels": runs[-1]["record"]["levels"],
        "meshes": rows,
    }
    save(f"retention-{tokens}-tokens-{args.steps}-steps", figures)


if __name__ == "__main__":
    main()
