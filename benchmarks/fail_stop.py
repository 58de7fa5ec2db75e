"""Seconds from a rank's fault until no process of the run is left.

Ranks started with `--nproc`, of which one raises, is killed or hangs while it denoises; nothing else is
measured: not under torchrun, not while loading, decoding or writing. A hang is found by the others' time-out:
its seconds hold that time-out, which is given beside them. Every round is a run of its own.
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
SIZE = ("--frames", "9", "--height", "64", "--width", "64")
STEP = {"full": 3, "jano": 10}  # where the fault is: with jano a sparse step
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def end_of(how: str, world: int, policy: str) -> dict[str, Any]:
    """One broken run: seconds from the fault until the last of its processes was gone, and what was said."""
    timeout = TIMEOUT if how == "hang" else 120
    with tempfile.TemporaryDirectory() as folder:
        call = [sys.executable, str(SUPERVISED), "generate", PROMPTS[0], "--out", f"{folder}/run"]
        call += ["--policy", policy, "--nproc", str(world), *SIZE]
        call += ["--set", f"runtime.timeout_seconds={timeout}"]
        environment = {**ENVIRONMENT, "FAULTS": folder, "BROKEN": f"{how}:1:{STEP[policy]}"}
        process = subprocess.Popen(call, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        _, said = process.communicate(timeout=300)
        while any(map(alive, pids(Path(folder)))):
            time.sleep(0.01)
        seconds = time.time() - float((Path(folder) / "time").read_text())
        return {"exit": process.returncode, "seconds": seconds, "sentences": said.decode().splitlines()}


def case(how: str, world: int, policy: str, rounds: int) -> dict[str, Any]:
    """The same fault several times."""
    ends = [end_of(how, world, policy) for _ in range(rounds)]
    seconds = [end["seconds"] for end in ends]
    row = {
        "how": how,
        "world": world,
        "timeout_seconds": TIMEOUT if how == "hang" else 120,
        "seconds": {"median": median(seconds), "lowest": min(seconds), "highest": max(seconds)},
        "exits": sorted({end["exit"] for end in ends}),
        "sentences": sorted({sentence for end in ends for sentence in end["sentences"]}),
    }
    print(row, flush=True)
    return row


def threads_of_a_rank() -> int:
    """The broken ranks do not live to say it; any process with their environment has as many."""
    call = [sys.executable, "-c", "import torch; print(torch.get_num_threads())"]
    return int(subprocess.run(call, env=ENVIRONMENT, capture_output=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worlds", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--policy", choices=list(STEP), default="full")
    args = parser.parse_args()
    rows = [
        case(how, world, args.policy, args.rounds)
        for how in ("raise", "kill", "hang")
        for world in args.worlds
    ]
    figures = {"policy": args.policy, "step": STEP[args.policy], "rounds": args.rounds, "rows": rows}
    save(f"fail-stop-{args.policy}", figures, [threads_of_a_rank()] * max(args.worlds))


if __name__ == "__main__":
    main()
