"""wan-tiny: every policy and control against the full run, in two regimes of its sampler.

Runs `jano-dist bench quality` once for each shift (16 captions that no setting was chosen on, two seeds),
prints a table for each, and keeps the figures without the videos. What is made stays in --out: started again
it goes on. Quality is the same in every run, so one is enough; a speed-up compares a video with the full run
made just before it, and whatever else uses the machine shows in it.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import save

HERE = Path(__file__).parent
SHIFTS = (3.0, 5.0)
_SHOWN = ("work", "speedup", "psnr", "ssim", "flip", "flicker_change")


def run(shift: float, out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One regime: what quality.json says."""
    captions = (HERE / "quality.txt").read_text().splitlines()[: args.prompts]
    prompts = [option for caption in captions for option in ("--prompt", caption)]
    overrides = [option for pair in (f"sampling.shift={shift}", *args.set) for option in ("--set", pair)]
    cases = ["--cases", HERE / "quality.yaml"]
    options = [*prompts, "--seeds", args.seeds, *cases, *overrides, "--out", out]
    call = [sys.executable, "-m", "jano_dist", "bench", "quality", "--config", args.config, *options]
    subprocess.run([str(part) for part in call], check=True)
    return json.loads((out / "quality.json").read_text())


def without_videos(record: dict[str, Any]) -> dict[str, Any]:
    """The figures of one regime, small enough to be committed: of every video its PSNR and work only."""
    each: dict[str, list[Any]] = {}
    for row in record["rows"]:
        each.setdefault(row["case"], []).append([row["quality"]["psnr"], round(row["work"], 4)])
    kept = {name: record[name] for name in ("figures", "ran", "config", "prompts", "seeds", "full", "cases")}
    return {**kept, "wins": wins(record), "psnr_and_work_of_each": each}


def wins(record: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Of every case with a control of fewer steps: on how many videos it is ahead, and the least gain."""
    psnr = {(row["case"], row["prompt"], row["seed"]): row["quality"]["psnr"] for row in record["rows"]}
    found = {}
    for case in record["cases"]:
        if case["like"]:
            ahead = [
                value - psnr[case["name"], *place[1:]]
                for place, value in psnr.items()
                if place[0] == case["like"] and "identical" not in (value, psnr[case["name"], *place[1:]])
            ]
            wins = sum(gain > 0 for gain in ahead)
            found[case["like"]] = {"videos": len(ahead), "ahead": wins, "worst_gain": min(ahead, default=0.0)}
    return found


def table(record: dict[str, Any]) -> str:
    """Mean / worst of every case as Markdown, by work."""
    lines = [f"| case | {' | '.join(_SHOWN)} |", f"| --- |{' --- |' * len(_SHOWN)}"]
    for case in sorted(record["cases"], key=lambda case: -case["work"]["mean"]):
        cells = [_cell(case[name]) for name in _SHOWN]
        lines.append(f"| {case['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(figure: dict[str, float] | None) -> str:
    if figure is None:
        return ""
    return f"{figure['mean']:.4g} / {figure['worst']:.4g}" if "mean" in figure else "identical"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/quality"))
    parser.add_argument("--config", default="wan-tiny")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--shifts", type=float, nargs="+", default=SHIFTS)
    parser.add_argument("--set", action="append", default=[], help="config override key=value, for all runs")
    args = parser.parse_args()
    regimes = {}
    for shift in args.shifts:
        record = run(shift, args.out / f"shift-{shift:g}", args)
        print(f"\nshift {shift:g}\n\n{table(record)}\n")
        regimes[f"shift {shift:g}"] = without_videos(record)
    shifts = "-".join(f"{shift:g}" for shift in args.shifts)
    save(f"quality-{args.prompts * args.seeds}-videos-shift-{shifts}", regimes)


if __name__ == "__main__":
    main()
