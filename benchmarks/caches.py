"""Every cache setting beside the native K/V cache: quality, and bytes measured against bytes predicted.

wan-tiny in one process; PSNR is of the frames against those made with the native K/V cache. Quality and
bytes are the same in every run, so all prompts once are enough; seconds need several runs (`repeat`).
"""

import argparse
from itertools import product
from statistics import mean
from typing import Any

import torch

from benchmarks.common import PROMPTS, save
from jano_dist import Engine, load_config
from jano_dist.account import cache_bytes, working_bytes
from jano_dist.degrees import Degrees
from jano_dist.quality import psnr

SETTINGS = tuple(product(("kv", "hidden"), ("native", "fp8"), ("accelerator", "cpu")))
ALONE = Degrees(1, 1, 1)


def config_of(kind: str, dtype: str, device: str) -> Any:
    return load_config(
        "wan-tiny", overrides={"cache.kind": kind, "cache.dtype": dtype, "cache.device": device}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = Engine(config_of(*SETTINGS[0])).model
    engines = {setting: Engine(config_of(*setting), model=model) for setting in SETTINGS}
    engines[SETTINGS[0]].generate(PROMPTS[0], seed=0)  # first use costs more
    rows: dict[tuple[str, str, str], list[dict[str, Any]]] = {setting: [] for setting in SETTINGS}
    for seed, prompt in enumerate(PROMPTS[: args.prompts]):
        made = {setting: engine.generate(prompt, seed=seed) for setting, engine in engines.items()}
        native = made[SETTINGS[0]]
        for setting, video in made.items():
            rows[setting].append(
                {
                    "difference": float((video.latents - native.latents).abs().max()),
                    "psnr": min(psnr(native.frames, video.frames), 100.0),  # 100 stands for identical
                    "denoise_seconds": video.record["seconds"]["denoise"],
                    "over_native": video.record["seconds"]["denoise"] / native.record["seconds"]["denoise"],
                    "memory": video.record["memory"],
                }
            )
    summary = [summarise(setting, each, model) for setting, each in rows.items()]
    save(f"caches-{args.prompts}-prompts", {"prompts": PROMPTS[: args.prompts], "rows": summary})


def summarise(setting: tuple[str, str, str], each: list[dict[str, Any]], model: Any) -> dict[str, Any]:
    config, memory, tokens = config_of(*setting), each[0]["memory"], 5 * 8 * 8
    sizes = (model.geometry, tokens, ALONE, config.cache, 4)
    row = {
        "cache": dict(zip(("kind", "dtype", "device"), setting, strict=True)),
        "largest_difference": max(one["difference"] for one in each),
        "psnr_mean": mean(one["psnr"] for one in each),
        "psnr_least": min(one["psnr"] for one in each),
        "denoise_seconds": mean(one["denoise_seconds"] for one in each),
        "denoise_over_native": mean(one["over_native"] for one in each),
        "cache_bytes": memory["cache_bytes_per_rank"],
        "cache_bytes_predicted": 2 * cache_bytes(*sizes),
        "workspace_bytes": memory["workspace_bytes_per_rank"],
        "workspace_bytes_predicted": working_bytes(*sizes),
    }
    print(row)
    return row


if __name__ == "__main__":
    main()
