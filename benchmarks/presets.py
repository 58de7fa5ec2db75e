"""wan-tiny: speed-up and quality of each preset against `full`, beside controls at the same work.

Controls: the same shares of tokens at random blocks, the map upside down, and simply fewer steps.
All of one prompt's videos are made one after the other in one process, so the ratios see the same
machine. Quality is measured on the frames, not on compressed video. It is the same in every run, so all
prompts once are enough; the speeds need several runs (`repeat`).
"""

import argparse
from statistics import mean
from typing import Any

import torch

from benchmarks.common import PROMPTS, save
from jano_dist import Config, Engine, Generation, load_config
from jano_dist.bench.stand_ins import random_maps
from jano_dist.policies import make_policy
from jano_dist.quality import psnr, ssim

PRESETS = ("conservative", "balanced", "fast")


def make(config: Config, model: Any, prompt: str, seed: int, policies: Any = make_policy) -> Generation:
    return Engine(config, model=model, policies=policies).generate(prompt, seed=seed)


def row(name: str, result: Generation, full: Generation) -> dict[str, Any]:
    """Ratios and quality of one video against the full one of the same prompt and seed."""
    seconds, reference = result.record["seconds"], full.record["seconds"]
    work = {"encode", "denoise", "decode"}
    return {
        "name": name,
        "speedup_denoise": reference["denoise"] / seconds["denoise"],
        "speedup_wall": sum(reference[k] for k in work) / sum(seconds[k] for k in work),
        "work": result.record["flops"]["done"] / full.record["flops"]["done"],
        "psnr": psnr(full.frames, result.frames),
        "ssim": ssim(full.frames, result.frames),
        "levels": result.record["levels"],
    }


def one_prompt(model: Any, prompt: str, seed: int, overrides: dict[str, Any]) -> list[dict[str, Any]]:
    full_config = load_config("wan-tiny", policy="full", overrides=overrides)
    full = make(full_config, model, prompt, seed)
    rows = []
    for preset in PRESETS:
        config = load_config("wan-tiny", preset=preset, overrides=overrides)
        jano = make(config, model, prompt, seed)
        rows.append(row(preset, jano, full))
        shuffled = make(config, model, prompt, seed, random_maps)
        rows.append(row(f"{preset}: random map", shuffled, full))
        steps = round(config.sampling.steps * rows[-2]["work"])
        fewer = load_config("wan-tiny", policy="full", overrides={**overrides, "sampling.steps": steps})
        rows.append(row(f"{preset}: fewer steps", make(fewer, model, prompt, seed), full))
    return rows


def average(rows: list[dict[str, Any]]) -> dict[str, Any]:
    keys = ("speedup_denoise", "speedup_wall", "work", "psnr", "ssim")
    shares = {level: mean(r["levels"][level] for r in rows) for level in rows[0]["levels"]}
    return {"name": rows[0]["name"], **{k: mean(r[k] for r in rows) for k in keys}, "levels": shares}


def control_wins(each: list[list[dict[str, Any]]]) -> dict[str, list[int]]:
    """For every control the prompts, counted from 1, on which its PSNR is above its preset's."""
    found: dict[str, list[int]] = {}
    for number, rows in enumerate(each, 1):
        of_name = {row["name"]: row["psnr"] for row in rows}
        for name, value in of_name.items():
            preset, _, control = name.partition(": ")
            if control:
                found.setdefault(name, []).extend([number] * (value > of_name[preset]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--set", action="append", default=[], help="config override key=value, for all runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    overrides = dict(text.split("=", 1) for text in args.set)
    model = Engine(load_config("wan-tiny", policy="full")).model
    make(load_config("wan-tiny", policy="full"), model, PROMPTS[0], 0)  # first use costs more
    each = [one_prompt(model, prompt, seed, overrides) for seed, prompt in enumerate(PROMPTS[: args.prompts])]
    summary = [average(list(rows)) for rows in zip(*each, strict=True)]
    for line in summary:
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in line.items() if k != "levels"})
    wins = control_wins(each)
    print("controls above their preset:", wins)
    figures = {"prompts": PROMPTS[: args.prompts], "average": summary, "control_wins": wins, "each": each}
    save(f"presets-{args.prompts}-prompts", figures)


if __name__ == "__main__":
    main()
