"""The same video on every mesh of 2 to 8 ranks (cfg x kv x ulysses), against one process.

Also counts what the collectives move: bytes of an active step over bytes of a full step, beside the
ratio of the tokens computed; and for meshes with a kv dimension what ring attention would have moved in
the same active step, which is all keys and values.
"""

import argparse
from collections import Counter
from typing import Any

import torch

from benchmarks.common import PROMPTS, on_ranks, save
from jano_dist import Engine, load_config
from jano_dist.degrees import Degrees, valid_degrees
from jano_dist.models import read_geometry

WORLDS = (2, 3, 4, 5, 6, 7, 8)
# 35 and 45 tokens: no world divides both.
SIZES = ((1, 80, 112), (9, 48, 80))
POLICIES = ("full", "jano")


def videos(meshes: list[Degrees], steps: int) -> dict[Any, Any]:
    """Latents, map and record of every mesh, policy and size, on this rank."""
    results: dict[Any, Any] = {}
    model: Any = None
    for cfg, kv, ulysses in meshes:
        for policy in POLICIES:
            for size in SIZES:
                settings: dict[str, Any] = dict(
                    zip(("video.frames", "video.height", "video.width"), size, strict=True)
                )
                settings |= {"mesh.cfg": cfg, "mesh.kv": kv, "mesh.ulysses": ulysses}
                settings |= {"sampling.steps": steps}
                if policy == "jano":
                    settings |= {"policy.block": [1, 2, 2]}
                engine = Engine(load_config("wan-tiny", policy=policy, overrides=settings), model=model)
                model = engine.model
                made = engine.generate(PROMPTS[0], seed=1)
                latents = made.latents.cpu().numpy()
                results[Degrees(cfg, kv, ulysses), policy, size] = latents, made.levels, made.record
    return results


def compare(key: tuple[Any, ...], ranks: list[Any], alone: Any) -> dict[str, Any]:
    """One mesh, policy and size: every rank's video against the one made by one process."""
    degrees, policy, size = key
    latents, levels, record = ranks[0]
    steps = {step["kind"]: step for step in record["steps"][1:]}  # the first also sends the map's plan
    balance = max(max(s["ranks"]["tokens"]) - min(s["ranks"]["tokens"]) for s in record["steps"])
    row = {
        "cfg x kv x ulysses": "x".join(map(str, degrees)),
        "policy": policy,
        "size": size,
        "tokens": int(levels.size),
        "max_difference": float(abs(latents - alone[0]).max()),
        "ranks_identical": all((other[0] == latents).all() for other in ranks),
        "map_identical": bool((levels == alone[1]).all()),
        "unbalance": balance,
        "cache_bytes_ratio": record["memory"]["cache_bytes_per_rank"]
        / max(1, alone[2]["memory"]["cache_bytes_per_rank"]),
        "kinds": Counter(step["kind"] for step in record["steps"]),
    }
    if "active" in steps and steps["full"]["comm_bytes"]:
        active, full = (steps[kind] for kind in ("active", "full"))
        row["active_bytes_ratio"] = active["comm_bytes"] / full["comm_bytes"]
        row["active_tokens_ratio"] = active["tokens"] / full["tokens"]
        if degrees.kv > 1:
            row["active_bytes"] = active["comm_bytes"]
            row["active_bytes_with_ring"] = active["comm_bytes"] + ring_minus_resident(
                degrees, active["tokens"], full["tokens"]
            )
    return row


def ring_minus_resident(degrees: Degrees, computed: int, tokens: int) -> int:
    """Bytes, over all ranks and branches, that ring attention would move more in a step: every K and V
    visits every other shard; resident attention sends queries there, and outputs with their logarithms
    back. float32, wan-tiny's sizes."""
    geometry = read_geometry("wan-tiny")
    others = degrees.kv - 1  # each row, with all its heads, goes to or comes from so many shards
    ring = 2 * tokens * geometry.width * 4 * others
    resident = computed * (2 * geometry.width * 4 + geometry.heads * 4) * others
    return 2 * geometry.layers * (ring - resident)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--worlds", type=int, nargs="+", default=list(WORLDS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    (alone,), _ = on_ranks(1, videos, [Degrees(1, 1, 1)], args.steps, timeout=3000)
    rows = []
    for world in args.worlds:
        meshes = valid_degrees(world=world, heads=read_geometry("wan-tiny").heads, guided=True)
        limits = {"timeout": 3000, "collective_timeout": 600}
        ranks, threads = on_ranks(world, videos, meshes, args.steps, **limits)
        for key in ranks[0]:
            one = alone[Degrees(1, 1, 1), *key[1:]]
            rows.append(compare(key, [rank[key] for rank in ranks], one))
            print({name: value for name, value in rows[-1].items() if name != "kinds"}, flush=True)
    worst = max(row["max_difference"] for row in rows)
    print(f"largest difference {worst:.2e}")
    save("gang-parity", {"steps": args.steps, "largest_difference": worst, "rows": rows}, threads)


if __name__ == "__main__":
    main()
