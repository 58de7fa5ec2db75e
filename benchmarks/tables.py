"""Write the tables of quality and recognition, and the plot, from the committed results.

Rewrites what lies between `<!-- NAME -->` and `<!-- end -->` in README.md and docs/benchmarks.md, and
docs/images/quality.png. `--check` only says whether they are as the results have them.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from statistics import mean, median
from typing import Any

from jano_dist.bench.plot import pareto

ROOT = Path(__file__).parents[1]
PLOT = ROOT / "docs" / "images" / "quality.png"
# How names of cases begin -> the line of the plot that they are on.
LINES = {
    "forecast": "forecast (ours)",
    "fewer steps": "fewer steps",
    "every": "every n-th step, on a line",
    "conservative": "presets (jano)",
    "balanced": "presets (jano)",
    "fast": "presets (jano)",
    "jano as published": "jano as published",
    "TeaCache": "TeaCache",
    "TaylorSeer": "TaylorSeer",
    "MagCache": "MagCache",
    "the same run in bf16": "floor",
}
ASIDE = ("held", "random map")  # not drawn, but in the table
SHORT = ("forecast", "fewer steps", "every", "conservative", "balanced", "fast")

# Named in papers: what they say (PSNR on real models; where), and our case.
PUBLISHED = (
    ("half the steps", "2.0x: 15.8 dB (Wan-14B, in ScalingCache's paper)", "fewer steps, 27"),
    (
        "Jano",
        "2.02x: 29.3 dB (Wan-14B); 1.45x: 24.3 dB (Wan-1.3B; both arXiv 2603.00519)",
        "jano as published",
    ),
    ("TeaCache", "1.94x: 27.2 dB (Wan-14B, Jano's paper); 1.5x: 18.6 dB (ScalingCache's)", "TeaCache 0.03"),
    ("PAB", "1.38x: 26.2 dB (Wan-14B, Jano's paper)", "PAB 2/6"),
    ("ToCa", "2.32x: 14.0 dB (Wan-1.3B, one clip, with Jano's published code)", "ToCa 3"),
    ("RAS", "1.34x: 15.4 dB (SD3, one picture, where Jano has 26.0 at 1.63x; Jano's supplement)", "RAS 0.5"),
    ("MagCache", "2.8x: 24.4 and 21.8 dB (Wan-14B, two prompts)", "MagCache, 1 skip"),
    ("Astraea", "1.86x: 28.1 dB (Wan-1.3B, arXiv 2506.05096)", "Astraea 0.5, per step"),
)


def newest(shift: int) -> dict[str, Any]:
    """The regime of the latest committed result at this shift."""
    files = sorted(Path(__file__).with_name("results").glob(f"*-quality-*-shift-{shift}.json"))
    return json.loads(files[-1].read_text())[f"shift {shift}"]


def rows(regime: dict[str, Any]) -> list[dict[str, Any]]:
    """Name, work, gain by the clock (the median, since other programs had the machine at times), and PSNR
    (mean, median, worst) of every case, those that compute most first."""
    found = []
    clock = {case["name"]: case["speedup"] for case in regime["cases"]}
    for name, each in regime["psnr_and_work_of_each"].items():
        if name == "full":
            continue
        psnr = [value for value, _ in each if isinstance(value, int | float)]
        found.append(
            {
                "name": name,
                "videos": len(each),
                "work": mean(work for _, work in each),
                "clock": clock[name]["median"] if clock[name] else None,
                "mean": mean(psnr),
                "median": median(psnr),
                "worst": min(psnr),
            }
        )
    return sorted(found, key=lambda row: -row["work"])


def table(found: list[dict[str, Any]], other: list[dict[str, Any]]) -> str:
    """Both regimes side by side, as Markdown."""
    beside = {row["name"]: row for row in other}
    lines = [
        "| | work | 1 / work | by the clock | PSNR mean / median / worst, shift 3 "
        "| work | the same, shift 5 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in found:
        pair = beside[row["name"]]
        gains = f"{1 / row['work']:.2f}x | {row['clock']:.2f}x"
        cells = f"{row['work']:.2f} | {gains} | {_psnr(row)} | {pair['work']:.2f} | {_psnr(pair)}"
        lines.append(f"| {row['name']} | {cells} |")
    return "\n".join(lines)


def short_table(found: list[dict[str, Any]]) -> str:
    """What fits on a screen."""
    lines = ["| | work | PSNR mean / median / worst of the videos |", "| --- | --- | --- |"]
    shown = [row for row in found if row["name"].startswith(SHORT) and not row["name"].endswith(ASIDE)]
    lines += [f"| {row['name']} | {row['work']:.2f} | {_psnr(row)} |" for row in shown]
    return "\n".join(lines)


def named_table(found: list[dict[str, Any]], other: list[dict[str, Any]]) -> str:
    """Each published figure beside ours."""
    here, there = ({row["name"]: row for row in regime} for regime in (found, other))
    lines = ["| method | published | here, mean / median / worst: shift 3; shift 5 |", "| --- | --- | --- |"]
    for method, figure, case in PUBLISHED:
        gains = f"{1 / here[case]['work']:.2f}x"
        lines.append(f"| {method} | {figure} | {case}, {gains}: {_psnr(here[case])}; {_psnr(there[case])} |")
    return "\n".join(lines)


def recognition_table() -> str:
    """What each score foretells, and the videos made with its map, the best first."""
    results = Path(__file__).with_name("results")
    told, made = (
        json.loads(sorted(results.glob(f"*-bench-{name}.json"))[-1].read_text())["rows"]
        for name in ("recognition", "outcomes")
    )
    warmups = sorted({row["warmup"] for row in told})
    columns = [f"warm-up {warmup}" for warmup in warmups]
    lines = [
        f"| map | {' | '.join(columns)} | PSNR mean / worst |",
        "| --- |" + " --- |" * (len(columns) + 1),
    ]
    psnr = {row["score"]: row for row in made if row["psnr_mean"] is not None}
    names = dict.fromkeys(row["score"] for row in told)
    mine = {name: [row for row in told if row["score"] == name] for name in names}
    for name in sorted(names, key=lambda name: -mean(row["rank_correlation"] for row in mine[name])):
        cells = [_foretold([row for row in mine[name] if row["warmup"] == warmup]) for warmup in warmups]
        outcome = psnr.get(name)
        cells.append(f"{outcome['psnr_mean']:.1f} / {outcome['psnr_worst']:.1f} dB" if outcome else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _foretold(found: list[dict[str, Any]]) -> str:
    return (
        f"{mean(row['rank_correlation'] for row in found):.2f}, {mean(row['accuracy'] for row in found):.2f}"
    )


def drawn(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cases of the plot, as `pareto` takes them."""
    cases = []
    for row in found:
        line = next((line for start, line in LINES.items() if row["name"].startswith(start)), None)
        if line and not row["name"].endswith(ASIDE):
            psnr = {"mean": row["mean"], "worst": row["worst"]}
            cases.append({"name": row["name"], "family": line, "work": {"mean": row["work"]}, "psnr": psnr})
    return cases


def _psnr(row: dict[str, Any]) -> str:
    return f"{row['mean']:.1f} / {row['median']:.1f} / {row['worst']:.1f} dB"


def filled(text: str, name: str, content: str) -> str:
    """`text` with `content` in the place of that name."""
    start, end = f"<!-- {name} -->\n", "<!-- end -->"
    pattern = re.escape(start) + ".*?" + re.escape(end)
    assert re.search(pattern, text, re.DOTALL), f"there is no place {name}"
    return re.sub(pattern, lambda _: f"{start}{content}\n{end}", text, count=1, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    found, other = rows(newest(3)), rows(newest(5))
    pages = {
        ROOT / "docs" / "benchmarks.md": {
            "quality": table(found, other),
            "by name": named_table(found, other),
            "recognition": recognition_table(),
        },
        ROOT / "README.md": {"quality": short_table(found)},
    }
    for page, places in pages.items():
        text = before = page.read_text()
        for name, content in places.items():
            text = filled(text, name, content)
        if args.check and text != before:
            sys.exit(f"{page.name} is not as the results have it: run python -m benchmarks.tables")
        page.write_text(text)
    if not args.check:
        PLOT.write_bytes(pareto(drawn(found), found[0]["videos"]))


if __name__ == "__main__":
    main()
