"""MagCache's magnitude ratios of a model: what `policy.ratios` takes (arXiv 2506.09045, section 3.2).

Full runs of some prompts; of every step the mean over tokens of |residual| / |residual of the step before|,
the residual being what all blocks together add to the embedding. Mean over the prompts, cond branch, with
the spread beside it: the method rests on its being small. No time is measured, so any machine will do.
"""

import argparse
from statistics import mean
from typing import Any

import torch

from benchmarks.common import PROMPTS, Undecoded, save
from jano_dist import Engine, load_config
from jano_dist.policies import BlockPolicy
from jano_dist.reuse import BlockCache, RatioRecorder, Setting


class Recording:
    """Method: computes everything; its caches measure the ratios."""

    def __init__(self) -> None:
        self.recorders: list[RatioRecorder] = []

    def caches(self, setting: Setting) -> list[BlockCache]:
        self.recorders = [RatioRecorder(setting) for _ in range(setting.branches)]
        return [*self.recorders]

    def starts_afresh(self, step: int) -> bool:
        return False


def measure(config: Any, prompts: int) -> list[list[list[float]]]:
    """Ratios by prompt, branch (cond, uncond) and step."""
    model, found = Undecoded(Engine(config).model), []
    for seed, prompt in enumerate(PROMPTS[:prompts]):
        method = Recording()
        policy = BlockPolicy(method)
        Engine(config, model=model, policies=lambda *_, policy=policy, **__: policy).generate(
            prompt, seed=seed
        )
        found.append([recorder.ratios for recorder in method.recorders])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="wan-tiny")
    parser.add_argument("--set", action="append", default=[], help="key=value, any config key; repeatable")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(args.config, policy="full", overrides=args.set)
    found = measure(config, args.prompts)
    branches = [[*zip(*(each[branch] for each in found), strict=True)] for branch in range(len(found[0]))]
    ratios = [[round(mean(step), 5) for step in steps] for steps in branches]
    spread = [max(max(step) - min(step) for step in steps) for steps in branches]
    print(f"policy.ratios: {ratios[0]}")
    print(f"largest difference between prompts: {', '.join(f'{each:.3f}' for each in spread)}")
    sampling = config.sampling.model_dump(include={"steps", "guidance", "shift"})
    figures = {"config": args.config, "sampling": sampling, "prompts": args.prompts, "kind": "measured"}
    save("magcache-ratios", {**figures, "ratios": ratios, "spread": spread})


if __name__ == "__main__":
    main()
