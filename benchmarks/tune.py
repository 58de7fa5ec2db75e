"""wan-tiny tuned by `jano-dist tune` itself: does what it finds reach the target on prompts held out?

The fastest setting of 40 dB, and the best that does half the work; 16 captions, of which tune holds out every
second. What is measured stays in --out: started again it goes on.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import save

CAPTIONS = Path(__file__).with_name("quality.txt")
TARGETS = {"40 dB": ("--psnr", "40"), "2x": ("--speedup", "2")}


def tune(target: tuple[str, str], out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One tuning; a target that is not reached is a result, too."""
    options = ["--prompts", CAPTIONS, *target, "--minutes", args.minutes, "--by", args.by, "--out", out]
    call = [sys.executable, "-m", "jano_dist", "tune", "--config", args.config, *options]
    subprocess.run([str(part) for part in call], check=False)
    return json.loads((out / "tune.json").read_text())


def kept(state: dict[str, Any], preset: str) -> dict[str, Any]:
    """What is worth committing: the result, what was tried on how many prompts, and what the preset says."""
    runs: dict[str, int] = {}
    for run in state["runs"]:
        runs[run["name"]] = runs.get(run["name"], 0) + 1
    left_out: dict[str, int] = {}
    for reason in state["left_out"].values():
        left_out[reason] = left_out.get(reason, 0) + 1
    said = [line.removeprefix("# ") for line in preset.splitlines() if line.startswith("# ")]
    return {
        "where": state["where"],
        "result": state["result"],
        "minutes": state["spent"] / 60,
        "calls": state["calls"],
        "candidates": len(state["facts"]["candidates"]),
        "left_out": left_out,
        "videos_of_each": runs,
        "said": [line for line in said if "`" not in line],
    }


def row(target: str, figures: dict[str, Any]) -> str:
    """A line of Markdown: what was found, on the prompts of the search and on those held out."""
    result = figures["result"]
    best, control = result["best"], result["best_control"]
    cells = [
        f"{target}, {name}: {_standing(result, name)}" for name in dict.fromkeys((best, control)) if name
    ]
    return "\n".join(f"* {cell}" for cell in cells)


def _standing(result: dict[str, Any], name: str) -> str:
    both = result["standings"][name]
    return "; ".join(
        f"{where} {each['work']:.2f}x by work, {each['wall']:.2f}x by the clock, "
        f"{each['mean']:.1f} / {each['worst']:.1f} dB on {each['prompts']}"
        for where, each in both.items()
        if each
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/tune"))
    parser.add_argument("--config", default="wan-tiny")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--by", choices=("wall", "work"), default="wall", help="what a speed-up is")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    args = parser.parse_args()
    found = {}
    for name in args.targets:
        out = args.out / name.replace(" ", "-")
        found[name] = kept(tune(TARGETS[name], out, args), (out / "preset.yaml").read_text())
        print(row(name, found[name]), flush=True)
    save(
        "tune-" + "-".join(name.replace(" ", "-") for name in args.targets), {"by": args.by, "tunings": found}
    )


if __name__ == "__main__":
    main()
