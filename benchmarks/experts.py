"""The first steps of a second expert: a refresh on the first one's map, or a warm-up and a map of its own.

wan-tiny stands for both experts; the second one's weights differ by a little noise. Latents against the
full run's, in dB of its size, beside the share of its work; intervals vary, so that equal work is near.
Quality is the same in every run.
"""

import argparse
import json
import math
import shutil
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.common import PROMPTS, Undecoded, save
from jano_dist import Engine, load_config
from jano_dist.models.folder import model_folder

_NOISE = 0.02  # of each tensor's deviation
_CASES = [(warmup, interval) for warmup in (0, 4, 6, 10) for interval in (2, 3, 4)]


def two_experts(folder: Path) -> Path:
    """wan-tiny with a second transformer, below 0.875 of the noise levels: from step 15 of 50 on."""
    shutil.copytree(model_folder("wan-tiny"), folder)
    shutil.copytree(folder / "transformer", folder / "transformer_2")
    (file,) = (folder / "transformer_2").glob("*.safetensors")
    tensors, generator = load_file(file), torch.Generator().manual_seed(0)
    for name, each in tensors.items():
        drawn = torch.randn(each.shape, generator=generator)
        tensors[name] = each + (_NOISE * each.float().std(correction=0) * drawn).to(each.dtype)
    save_file(tensors, file, metadata={"format": "pt"})
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"transformer_2": index["transformer"], "boundary_ratio": 0.875}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def decibels(ours: torch.Tensor, full: torch.Tensor) -> float:
    """10 log10 of the full latent's mean square over the difference's."""
    return 10 * math.log10(float(full.square().mean() / (ours - full).square().mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=6)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[tuple[int, int], list[dict[str, float]]] = {case: [] for case in _CASES}
    with tempfile.TemporaryDirectory() as scratch:
        own: dict[str, Any] = {"model.name": str(two_experts(Path(scratch) / "model"))}
        base = Engine(load_config("wan-tiny", policy="full", overrides=own))
        model: Any = Undecoded(base.model)
        full = Engine(load_config("wan-tiny", policy="full", overrides=own), model=model)
        for seed, prompt in enumerate(PROMPTS[: args.prompts]):
            reference = full.generate(prompt, seed=seed).latents
            for warmup, interval in _CASES:
                more = own | {"policy.warmup_2": warmup, "policy.static_interval": interval}
                made = Engine(load_config("wan-tiny", overrides=more), model=model).generate(
                    prompt, seed=seed
                )
                work = made.record["flops"]["done"] / made.record["flops"]["full"]
                rows[warmup, interval].append({"dB": decibels(made.latents, reference), "work": work})
    save("experts", {"prompts": PROMPTS[: args.prompts], "noise": _NOISE, "rows": [*map(_row, rows.items())]})


def _row(case: tuple[tuple[int, int], list[dict[str, float]]]) -> dict[str, float]:
    (warmup, interval), each = case
    found = {
        "warmup_2": warmup,
        "static_interval": interval,
        "work": mean(one["work"] for one in each),
        "dB": mean(one["dB"] for one in each),
        "worst": min(one["dB"] for one in each),
    }
    print(found, flush=True)
    return found


if __name__ == "__main__":
    main()
