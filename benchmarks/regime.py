"""wan-tiny's sampler at several guidance scales and shifts: how smooth are its velocities, do its captions
hold, and what do skipping whole steps and skipping regions cost there?

A sampler that jumps to and fro makes every comparison meaningless: fewer steps then lose much that they lose
nowhere else. The relative change is |v_i - v_(i-1)| / |v_i| of the guided velocity; it settles within a few
steps in models that people use. Captions are one-object ones held out from training; what came true is read
off the frames by `training.wan_tiny.judge`.
"""

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import yaml
from torch import Tensor

from benchmarks.common import save
from jano_dist import load_config
from jano_dist.bench.cases import Case
from jano_dist.bench.runs import Full, Runs
from training.wan_tiny.data import Scene
from training.wan_tiny.judge import ATTRIBUTES, held_out_scenes, mark, measure

REGIMES = ((4.0, 1.0), (3.0, 1.0), (3.0, 3.0), (3.0, 5.0), (2.0, 3.0))
CASES = Path(__file__).with_name("regime.yaml")
SEED = 5  # of the captions


def relative_change(velocities: Tensor) -> list[float]:
    """|v_i - v_(i-1)| / |v_i| of every step but the first; velocities [steps, C, T, H, W]."""
    flat = velocities.flatten(1)
    return ((flat[1:] - flat[:-1]).norm(dim=1) / flat[1:].norm(dim=1)).tolist()


def came_true(scene: Scene, full: Full) -> bool:
    """Whether colour, motion and background of the caption are in the frames."""
    frames = torch.from_numpy(full.frames).float()  # 0..255
    right = mark(scene, measure(frames, len(scene.things)))
    return all(right[name] for name in ATTRIBUTES)


def regime(guidance: float, shift: float, scenes: list[Scene], cases: list[Case]) -> dict[str, Any]:
    """One row of the first table, and all of the second."""
    overrides = {"sampling.guidance": guidance, "sampling.shift": shift}
    runs = Runs(load_config("wan-tiny", policy="full", overrides=overrides), velocities=True)
    captions = [scene.caption() for scene in scenes]
    runs.prepare(captions)
    changes, right, rows = [], [], {case.name: [] for case in cases}
    for seed, (scene, caption) in enumerate(zip(scenes, captions, strict=True)):
        full = runs.full(caption, seed)
        changes.append(relative_change(full.velocities))
        right.append(came_true(scene, full))
        for case in cases:
            rows[case.name].append(runs.measure(case, caption, seed))
        runs.forget(caption, seed)
    return {
        "guidance": guidance,
        "shift": shift,
        "relative_change": [mean(step) for step in zip(*changes, strict=True)],
        "largest_after_three_steps": max(max(each[3:]) for each in changes),
        "captions_right": sum(right),
        "cases": [summary(name, outcomes) for name, outcomes in rows.items()],
    }


def summary(name: str, outcomes: list[Any]) -> dict[str, Any]:
    values = [outcome.quality["psnr"] for outcome in outcomes]
    return {
        "name": name,
        "work": mean(outcome.work for outcome in outcomes),
        "psnr_mean": mean(values),
        "psnr_worst": min(values),
    }


def show(row: dict[str, Any], captions: int) -> None:
    sample = " ".join(f"{each:.2f}" for each in row["relative_change"][::3])
    print(f"guidance {row['guidance']:g}, shift {row['shift']:g}: {sample}", end="; ")
    print(f"largest {row['largest_after_three_steps']:.2f}; right {row['captions_right']} of {captions}")
    for case in row["cases"]:
        print(
            "  {name:42s} work {work:.2f}  {psnr_mean:5.1f} / {psnr_worst:5.1f} dB".format(**case), flush=True
        )


def pair(text: str) -> tuple[float, float]:
    guidance, shift = map(float, text.split(","))
    return guidance, shift


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=int, default=13)
    parser.add_argument(
        "--regimes", nargs="+", type=lambda text: tuple(map(float, text.split(","))), default=REGIMES
    )
    parser.add_argument("--cases", type=Path, default=CASES, help="YAML: name -> config changes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = [Case(name, changes) for name, changes in (yaml.safe_load(args.cases.read_text()) or {}).items()]
    scenes = held_out_scenes(args.captions, 1, seed=SEED)
    rows = []
    for guidance, shift in args.regimes:
        rows.append(regime(guidance, shift, scenes, cases))
        show(rows[-1], len(scenes))
    save("regime", {"kind": "measured", "captions": [scene.caption() for scene in scenes], "regimes": rows})


if __name__ == "__main__":
    main()
