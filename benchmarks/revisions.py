"""Seconds of each kind of step, of an earlier revision and of this checkout, by the command line, in turns.

    python -m benchmarks.repeat 5 revisions --before 3b14178

For 320 and 2,304 tokens, in one process and on two ranks by Ulysses: median seconds of a step of each kind in
both, and before over now: above 1 it gains. And this checkout's seconds from the command to its first step.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import PROMPTS, RESULTS, save

VIDEOS = ((17, 128), (33, 256))  # frames, height and width: 320 and 2,304 tokens
RANKS = {"1 process": (1, 1), "ulysses 2": (2, 2)}  # ranks, and the Ulysses degree
CHECKOUT = RESULTS.parents[1]


def made(checkout: Path, video: tuple[int, int], ranks: tuple[int, int]) -> dict[str, Any]:
    """The record of one run."""
    frames, size = video
    world, ulysses = ranks
    settings = {"video.frames": frames, "video.height": size, "video.width": size, "mesh.ulysses": ulysses}
    chosen = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    with tempfile.TemporaryDirectory() as folder:
        call = [sys.executable, "-m", "jano_dist", "generate", PROMPTS[0], "--seed", "0", *chosen]
        subprocess.run(
            [*call, "--nproc", str(world), "--out", f"{folder}/run"],
            env={**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        record: dict[str, Any] = json.loads(Path(folder, "run", "run.json").read_text())
    return record


def compare(before: Path, video: tuple[int, int], ranks: tuple[int, int]) -> list[dict[str, Any]]:
    """A row per kind of step, and one of what goes before the first."""
    old, new = made(before, video, ranks), made(CHECKOUT, video, ranks)
    rows: list[dict[str, Any]] = []
    for kind in sorted({step["kind"] for step in new["steps"]}):
        was, now = (
            median(step["seconds"] for step in run["steps"] if step["kind"] == kind) for run in (old, new)
        )
        tokens = median(step["tokens"] for step in new["steps"] if step["kind"] == kind)
        rows.append({"kind": kind, "tokens": tokens, "before": was, "now": now, "gain": was / now})
    rows.append({"kind": "start", "now": new["start_to_first_step_seconds"]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", required=True, help="the earlier revision")
    parser.add_argument(
        "--sizes", type=int, default=len(VIDEOS), help="how many of the sizes, small ones first"
    )
    args = parser.parse_args()
    revision = args.before
    with tempfile.TemporaryDirectory() as folder:
        earlier = Path(folder, "earlier")
        git = ["git", "-C", str(CHECKOUT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(earlier), revision], check=True)
        try:
            rows = [
                {"video tokens": (frames // 4 + 1) * (size // 16) ** 2, "ranks": name, **row}
                for frames, size in VIDEOS[: args.sizes]
                for name, ranks in RANKS.items()
                for row in compare(earlier, (frames, size), ranks)
            ]
        finally:
            subprocess.run([*git, "remove", "--force", str(earlier)], check=True)
    for row in rows:
        print(row)
    save("revisions", {"before": revision, "rows": rows}, [1])


if __name__ == "__main__":
    main()
