"""Seconds from a rank's fault until no process of the run is left.

Ranks started with `--nproc` of which one raises, is killed or hangs in the middle of denoising. A hang is
found by the others' time-out: its seconds hold that time-out, which is given beside them.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import PROMPTS, save
from tests.launch.conftest import alive, pids

SUPERVISED = Path(__file__).parents[1] / "tests" / "launch" / "supervised.py"
TIMEOUT = 5  # seconds, of collectives where a rank hangs


def end_of(how: str, world: int) -> dict[str, Any]:
    """One broken run: seconds from the fault until the last of its processes was gone, and what was said."""
    with tempfile.TemporaryDirectory() as folder:
        call = [sys.executable, str(SUPERVISED), "generate", PROMPTS[0], "--out", f"{folder}/run"]
        call += [
            "--policy",
            "full",
            "--nproc",
            str(world),
            "--frames",
            "9",
            "--height",
            "64",
            "--width",
            "64",
        ]
        call += ["--set", f"runtime.timeout_seconds={TIMEOUT if how == 'hang' else 120}"]
        environment = {**os.environ, "FAULTS": folder, "BROKEN": f"{how}:1:3", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(call, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        _, said = process.communicate(timeout=300)
        while any(map(alive, pids(Path(folder)))):
            time.sleep(0.01)
        seconds = time.time() - float((Path(folder) / "time").read_text())
        return {"exit": process.returncode, "seconds": seconds, "sentences": said.decode().splitlines()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worlds", type=int, nargs="+", default=[2, 4, 8])
    args = parser.parse_args()
    rows = []
    for how in ("raise", "kill", "hang"):
        for world in args.worlds:
            ends = [end_of(how, world) for _ in range(args.rounds)]
            row = {
                "how": how,
                "world": world,
                "timeout_seconds": TIMEOUT if how == "hang" else 120,
                "seconds_median": median(end["seconds"] for end in ends),
                "seconds_most": max(end["seconds"] for end in ends),
                "exits": sorted({end["exit"] for end in ends}),
                "sentences": ends[0]["sentences"],
            }
            print(row, flush=True)
            rows.append(row)
    save("fail-stop", {"rows": rows})


if __name__ == "__main__":
    main()
