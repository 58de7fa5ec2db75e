"""How early does the score know where the video will still change? Chooses wan-tiny's warm-up and shift.

For each flow shift one full generation per prompt keeps every guided velocity. For each warm-up W
the scores made from the first W velocities are ranked against what holding the velocity of step W
would have got wrong later: the mean over the later steps of |v_i - v_W| per block.
"""

import argparse
from functools import partial
from statistics import mean
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.common import PROMPTS, save
from jano_dist import Engine, load_config
from jano_dist.policies import Policy
from jano_dist.tokens.complexity import block_scores, enhance, last_change
from jano_dist.tokens.grid import block_counts, block_slices
from jano_dist.tokens.schedule import StepKind

SCORES = {
    "published": block_scores,
    "published, enhanced": lambda v, block: enhance(block_scores(v, block)),
    "last_change": last_change,
    "last_change, enhanced": lambda v, block: enhance(last_change(v, block)),
}


class Recorder(Policy):
    """Policy: everything full, every velocity kept."""

    def __init__(self, kept: list[Tensor]) -> None:
        self._kept = kept

    def decide(self, step: int) -> StepKind:
        return StepKind.FULL

    def observe(self, step: int, velocity: Tensor) -> None:
        self._kept.append(velocity.clone())


def later_change(velocities: Tensor, warmup: int, block: tuple[int, int, int]) -> Tensor:
    """Per block, the mean over later steps of |v_i - v_W|: [S, C, T, H, W] -> [nt, nh, nw]."""
    error = (velocities[warmup:] - velocities[warmup - 1]).norm(dim=1).mean(0)  # [T, H, W]
    latent = tuple(error.shape)
    counts = block_counts(latent, block)
    cells = [(t, h, w) for t in range(counts[0]) for h in range(counts[1]) for w in range(counts[2])]
    return torch.tensor([error[block_slices(latent, block, cell)].mean() for cell in cells]).reshape(counts)


def correlations(velocities: Tensor, warmup: int, block: tuple[int, int, int]) -> dict[str, float]:
    """Spearman's rank correlation of each score with the later change."""
    truth = later_change(velocities, warmup, block).flatten()
    return {
        name: float(spearmanr(score(velocities[:warmup], block).flatten(), truth).statistic)
        for name, score in SCORES.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shifts", type=float, nargs="+", default=[1.0, 2.0, 3.0])
    parser.add_argument("--warmups", type=int, nargs="+", default=[4, 6, 8, 10, 12, 15])
    parser.add_argument("--blocks", nargs="+", default=["1,2,2", "1,4,4", "5,4,4"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    model: Any = None
    rows = []
    for shift in args.shifts:
        runs = []
        for seed, prompt in enumerate(PROMPTS):
            kept: list[Tensor] = []
            config = load_config("wan-tiny", policy="full", overrides={"sampling.shift": shift})
            engine = Engine(config, model=model, policies=partial(lambda k, *_, **__: Recorder(k), kept))
            model = engine.model
            engine.generate(prompt, seed=seed)
            runs.append(torch.stack(kept))
        for block in (tuple(int(edge) for edge in text.split(",")) for text in args.blocks):
            for warmup in args.warmups:
                each = [correlations(run, warmup, block) for run in runs]
                row = {name: round(mean(one[name] for one in each), 3) for name in SCORES}
                rows.append({"shift": shift, "block": block, "warmup": warmup, "rank_correlation": row})
                print(rows[-1])
    save("warmup", {"prompts": len(PROMPTS), "steps": config.sampling.steps, "rows": rows})


if __name__ == "__main__":
    main()
