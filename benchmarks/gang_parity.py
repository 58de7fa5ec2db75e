"""The same video on every mesh: worlds 1, 2, 3, 4, 6 with every cfg x ulysses split, against one process.

Also counts what the collectives move: bytes of an active step over bytes of a full step, beside the
ratio of the tokens computed.
"""

import argparse
import math
from collections import Counter
from typing import Any

import torch

from benchmarks.common import PROMPTS, save
from jano_dist import Engine, load_config
from tests.gang.harness import gang

SPLITS = {1: [(1, 1)], 2: [(2, 1), (1, 2)], 3: [(1, 3)], 4: [(2, 2)], 6: [(2, 3), (1, 6)]}
# 35 and 45 tokens divide by no world but 3; 320 are the demo's.
SIZES = ((1, 80, 112), (9, 48, 80), (17, 128, 128))
POLICIES = ("full", "jano")


def videos(splits: list[tuple[int, int]], steps: int) -> dict[str, Any]:
    """Latents, map and record of every split, policy and size, on this rank."""
    results, model = {}, None
    for cfg, ulysses in splits:
        for policy in POLICIES:
            for size in SIZES:
                settings: dict[str, Any] = dict(
                    zip(("video.frames", "video.height", "video.width"), size, strict=True)
                )
                settings |= {"mesh.cfg": cfg, "mesh.ulysses": ulysses, "sampling.steps": steps}
                if policy == "jano":
                    settings |= {"policy.block": [1, 2, 2]}
                engine = Engine(load_config("wan-tiny", policy=policy, overrides=settings), model=model)
                model = engine.model
                made = engine.generate(PROMPTS[0], seed=1)
                results[f"{cfg}x{ulysses}", policy, size] = (
                    made.latents.numpy(), made.levels, made.record,
                )  # fmt: skip
    return results


def compare(key: tuple[Any, ...], ranks: list[Any], alone: Any) -> dict[str, Any]:
    """One split, policy and size: every rank's video against the one made by one process."""
    split, policy, size = key
    latents, levels, record = ranks[0]
    steps = {step["kind"]: step for step in record["steps"][1:]}  # the first also sends the map's plan
    balance = max(max(s["ranks"]["tokens"]) - min(s["ranks"]["tokens"]) for s in record["steps"])
    row = {
        "cfg x ulysses": split,
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
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--worlds", type=int, nargs="+", default=list(SPLITS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    alone = gang(1, videos, SPLITS[1], args.steps, timeout=3000)[0]
    rows = []
    for world in args.worlds:
        ranks = gang(world, videos, SPLITS[world], args.steps, timeout=3000, collective_timeout=600)
        for key in ranks[0]:
            rows.append(compare(key, [rank[key] for rank in ranks], alone["1x1", *key[1:]]))
            print({name: value for name, value in rows[-1].items() if name != "kinds"})
    worst = max(row["max_difference"] for row in rows)
    assert math.isfinite(worst)
    print(f"largest difference {worst:.2e}")
    save("gang-parity", {"steps": args.steps, "largest_difference": worst, "rows": rows})


if __name__ == "__main__":
    main()
