"""What an active step costs against a full one, over its share of the tokens.

Active and full steps alternate inside one generation, so both see the same machine. A ratio of
1.0 means that the cost shrinks exactly with the tokens.
"""

import argparse
from statistics import median
from typing import Any

import torch

from benchmarks.common import FixedMap, Undecoded, save
from jano_dist import Config, Engine, load_config
from jano_dist.tokens.complexity import ACTIVE, STATIC
from jano_dist.tokens.schedule import StepKind

SHARES = (0.1, 0.25, 0.5)


def random_levels(tokens: int, share: float) -> torch.Tensor:
    """A complexity map uint8 [tokens] with this share active, at random places."""
    levels = torch.full((tokens,), STATIC, dtype=torch.uint8)
    levels[torch.randperm(tokens, generator=torch.Generator().manual_seed(0))[: round(share * tokens)]] = (
        ACTIVE
    )
    return levels


def measure(config: Config, model: Any, tokens: int, share: float) -> dict[str, Any]:
    """Median seconds of active and full steps with this active share."""
    policy = FixedMap(random_levels(tokens, share), (StepKind.ACTIVE, StepKind.FULL))
    record = Engine(config, model=model, policies=lambda *_, **__: policy).generate("a red ball").record
    timed = record["steps"][4:]  # the first steps also fill the text K/V and the allocator
    seconds = {kind: median(s["seconds"] for s in timed if s["kind"] == kind) for kind in ("active", "full")}
    exact = next(s["tokens"] for s in timed if s["kind"] == "active") / tokens
    ratio = seconds["active"] / seconds["full"]
    return {"share": exact, "seconds": seconds, "cost": ratio, "cost_over_share": ratio / exact}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=33)
    parser.add_argument("--size", type=int, default=256, help="height and width in pixels")
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    size = {"video.frames": args.frames, "video.height": args.size, "video.width": args.size}
    config = load_config("wan-tiny", policy="full", overrides={**size, "sampling.steps": args.steps})
    engine = Engine(config)
    t, h, w = engine.latent_shape
    tokens = t * (h // 2) * (w // 2)
    rows = [measure(config, Undecoded(engine.model), tokens, share) for share in SHARES]
    for row in rows:
        print(f"share {row['share']:.3f}: cost {row['cost']:.3f}, over share {row['cost_over_share']:.3f}")
    save(f"sparse-step-{tokens}-tokens", {"tokens": tokens, "steps": args.steps, "rows": rows})


if __name__ == "__main__":
    main()
