"""What Wan2.1-14B at 1280x720 would need per rank, next to the published code: arithmetic, nothing is run.

    python -m benchmarks.account

For 1 to 16 ranks, every kind and dtype of cache: bytes of the cache on a rank, of the fullest rank in all,
and what it sends in an active step. 8 ranks per node; the mesh is the one the engine would choose.
"""

import torch

from benchmarks.common import save
from jano_dist.account import memory_of, step_work, working_bytes
from jano_dist.account.fit import mesh_for
from jano_dist.account.memory import token_count
from jano_dist.config import load_config
from jano_dist.models.sizes import read_sizes
from jano_dist.tokens.schedule import StepKind

# Peak on one GPU with the published K/V cache, less the peak without (arXiv 2603.00519), GB.
PUBLISHED_CACHE_GB = 269.02 - 65.02
ACTIVE = 0.25


def main() -> None:
    rows = []
    for world in (1, 2, 4, 8, 16):
        for kind in ("kv", "hidden"):
            for dtype in ("native", "fp8"):
                rows.append(row(world, kind, dtype))
                print(rows[-1])
    save("account", {"published_cache_gb_one_gpu": PUBLISHED_CACHE_GB, "active": ACTIVE, "rows": rows})


def row(world: int, kind: str, dtype: str) -> dict[str, object]:
    config = load_config("wan2.1-14b-720p", overrides={"cache.kind": kind, "cache.dtype": dtype})
    sizes = read_sizes(config.model.name, local=True)
    degrees = mesh_for(sizes, config, world=world, local_world=min(world, 8))
    memory, tokens = memory_of(sizes, config, degrees), token_count(sizes.geometry, config)
    element = getattr(torch, config.model.dtype).itemsize
    work = step_work(sizes, config, degrees, StepKind.ACTIVE, round(ACTIVE * tokens))
    return {
        "world": world,
        "kind": kind,
        "dtype": dtype,
        "mesh": degrees._asdict(),
        "cache_gb": memory.resident["cache"] / 1e9,
        "working_gb": working_bytes(sizes.geometry, tokens, degrees, config.cache, element) / 1e9,
        "peak_gb": memory.peak / 1e9,
        "peaks_gb": {phase: size / 1e9 for phase, size in memory.phases.items()},
        "sent_active_step_gb": work.sent.total / 1e9,
        "ring_would_send_gb": work.sent.ring / 1e9,
        "active_step_tflop": work.rank_flops / 1e12,
    }


if __name__ == "__main__":
    main()
