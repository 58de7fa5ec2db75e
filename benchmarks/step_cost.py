"""What each kind of step costs at the true width of Wan2.1, random weights, against counted FLOPs.

    python -m benchmarks.step_cost                     # CPU: one block, 512 tokens, float32
    python -m benchmarks.step_cost --frames 37         # CPU: one block, 1,280 tokens
    python -m benchmarks.step_cost --size 480 832 --frames 81 --layers 0 --dtype bfloat16 --device cuda

For 1, 2, 4, 8 and 16 ranks one rank's share is run alone, with its tokens, its heads and no communication,
so what is measured is compute. Beside the seconds of a forward are its counted FLOPs, what they would take at
the device's own rate in matrix products and attention of the same shapes, and the cost against a full
forward: `cost_over_share` 1 means that the cost shrinks as the tokens do.
"""

import argparse
from typing import Any

import torch

from benchmarks.common import save
from benchmarks.probes import (
    AloneMesh,
    expected_seconds,
    forward_seconds,
    plan_of,
    random_transformer,
    rates,
    row_bytes,
    true_width,
)
from jano_dist import Config, load_config
from jano_dist.account import memory_of
from jano_dist.account.caches import shard_rows
from jano_dist.account.fit import mesh_for
from jano_dist.account.memory import branches_on_rank, token_count
from jano_dist.account.work import step_work
from jano_dist.degrees import Degrees
from jano_dist.models.sizes import ModelSizes
from jano_dist.models.wan import WanTransformer
from jano_dist.tokens.schedule import StepKind

CONFIGS = {"14b": "wan2.1-14b-720p", "1.3b": "wan2.1-1.3b-480p"}
MODERATE = 0.2  # of the tokens, on top of the active ones


def share_of(
    model: WanTransformer, config: Config, sizes: ModelSizes, degrees: Degrees, active: float, repeats: int
) -> list[dict[str, Any]]:
    """Every kind of step on rank 0 of this mesh, alone."""
    geometry, device = sizes.geometry, model.module.device
    tokens = token_count(geometry, config)
    plan = plan_of(tokens, active, MODERATE)
    kinds = (StepKind.FULL, StepKind.REFRESH, StepKind.MODERATE, StepKind.ACTIVE)
    seconds = forward_seconds(model, config, sizes, plan, AloneMesh(degrees), dict.fromkeys(kinds, repeats))
    rows = []
    for kind in kinds:
        computed = plan.count(kind)
        work = step_work(sizes, config, degrees, kind, computed)
        keys = shard_rows(tokens, degrees)
        found = rates(geometry, work, keys, degrees.ulysses, model.dtype, device, repeats)
        expected = expected_seconds(work, found)
        rows.append(
            {
                "kind": kind.value,
                "active": active,
                "tokens": computed,
                "rank_tokens": work.rank_rows,
                "forwards_per_step": work.forwards,
                "seconds": seconds[kind],
                "flops": work.rank_flops // work.forwards,
                "flops_per_second": work.rank_flops / work.forwards / seconds[kind],
                "measured_rates": found,
                "seconds_at_measured_rates": expected,
                "over_measured_rates": seconds[kind] / expected,
                "pointwise_bytes": row_bytes(sizes, work.rank_rows),
                "cost": seconds[kind] / seconds[StepKind.FULL],
                "cost_over_share": seconds[kind] / seconds[StepKind.FULL] / (computed / tokens),
            }
        )
    return rows


def fits(config: Config, sizes: ModelSizes, degrees: Degrees, device: torch.device) -> bool:
    """Whether a GPU holds weights, one branch's cache and activations; the host is not asked."""
    if device.type != "cuda":
        return True
    memory = memory_of(sizes, config, degrees)
    branches = branches_on_rank(sizes.geometry, config, degrees)
    needed = memory.phases["denoise"] - memory.resident["cache"] * (1 - 1 / branches)
    return needed < torch.cuda.get_device_properties(device).total_memory * 0.95


def measure(args: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    height, width = args.size
    overrides = {"video.frames": args.frames, "video.height": height, "video.width": width}
    overrides |= {"model.dtype": args.dtype}
    config = load_config(CONFIGS[name], overrides=overrides)
    sizes = true_width(config, args.layers or None)
    device = torch.device(args.device)
    dtype = getattr(torch, args.dtype)
    model = WanTransformer(random_transformer(config, sizes.geometry.layers, dtype, device))
    rows = []
    for world in args.ranks:
        degrees = mesh_for(sizes, config, world=world, local_world=min(world, 8))
        if not fits(config, sizes, degrees, device):
            print(f"{name} on {world} ranks: one rank's share does not fit this device, left out")
            continue
        for active in args.active:
            for row in share_of(model, config, sizes, degrees, active, args.repeats):
                rows.append({"model": name, "ranks": world, "mesh": degrees._asdict(), **row})
                print(
                    f"{name} {world:>2} ranks, active {active:.2f}, {row['kind']:<8} {row['rank_tokens']:>6} "
                    f"tokens {row['seconds']:8.4f} s, {row['over_measured_rates']:.2f} of measured rates, "
                    f"cost/share {row['cost_over_share']:.2f}",
                    flush=True,
                )
    return rows


def parse() -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=tuple(CONFIGS), default=list(CONFIGS))
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if cuda else "float32")
    parser.add_argument("--layers", type=int, default=0 if cuda else 1, help="0: all")
    parser.add_argument("--frames", type=int, default=81 if cuda else 13)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 832) if cuda else (128, 256))
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--active", type=float, nargs="+", default=[0.1, 0.25, 0.5])
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.device == "cpu":
        torch.set_num_threads(1)  # as a rank of a gang has
    rows = [row for name in args.models for row in measure(args, name)]
    where = torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu"
    settings = {**vars(args), "device_name": where, "figures": "measured"}
    height, width = args.size
    save(
        f"step-cost-{where.replace(' ', '-').lower()}-{args.frames}x{height}x{width}",
        {**settings, "rows": rows},
    )


if __name__ == "__main__":
    main()
