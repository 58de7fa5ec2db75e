"""Seconds from a rank's fault until no rank is left, and from the first report of its cause.

One rank raises, is killed, hangs (asleep, but it hears signals) or is stuck (asleep in C, deaf to signals)
while it denoises, and they are not started again; nothing else is measured: not while loading, decoding
or writing. A hang is found by the others' time-out: its seconds hold that time-out, which is given beside
them. Launchers: nproc, ray, torchrun (one agent), agents (torchrun with two). Every round is its own run.
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

LAUNCH = Path(__file__).parents[1] / "tests" / "launch"
TIMEOUT = 5  # seconds, of collectives where a rank hangs
SIZE = ("--frames", "9", "--height", "64", "--width", "64")
STEP = {"full": 3, "jano": 10}  # where the fault is: with jano a sparse step
HOWS = ("raise", "kill", "hang", "stuck")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(LAUNCH.parents[1])}
ENVIRONMENT["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # as launchers/torchrun.sh


def commands(launcher: str, call: list[str], world: int, meeting: str) -> list[list[str]]:
    """One command line, or one for each of torchrun's agents."""
    if launcher in ("nproc", "ray"):
        more = ["--nproc", str(world)] + (["--launcher", "ray"] if launcher == "ray" else [])
        return [[sys.executable, str(LAUNCH / "supervised.py"), *call, *more]]
    agents = 2 if launcher == "agents" else 1
    agent = [sys.executable, "-m", "torch.distributed.run", "--max-restarts", "0"]
    agent += ["--nnodes", str(agents), "--nproc-per-node", str(world // agents)]
    if agents == 2:
        agent += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:29747", "--rdzv-id", meeting]
    return [[*agent, str(LAUNCH / "broken.py"), *call]] * agents


def end_of(launcher: str, how: str, world: int, policy: str) -> dict[str, Any]:
    """One broken run: seconds until the last of its ranks was gone, and what was said."""
    timeout = TIMEOUT if how in ("hang", "stuck") else 120
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        call = ["generate", PROMPTS[0], "--out", f"{name}/run", "--policy", policy, *SIZE]
        for setting in (f"runtime.timeout_seconds={timeout}", "runtime.recoveries=0"):
            call += ["--set", setting]
        environment = {**ENVIRONMENT, "FAULTS": name, "BROKEN": f"{how}:1:{STEP[policy]}"}
        processes = [
            subprocess.Popen(each, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            for each in commands(launcher, call, world, folder.name)
        ]
        while not (folder / "time").exists():
            time.sleep(0.01)
        while any(map(alive, pids(folder))):
            time.sleep(0.01)
        gone, fault = time.time(), float((folder / "time").read_text())
        said = "".join(process.communicate(timeout=300)[1].decode() for process in processes)
        said = said.replace(f"{name}/", "")
        cause = folder / "cause"
        return {
            "exits": [process.returncode for process in processes],
            "seconds": gone - fault,
            # A killed rank cannot say it; then it is the launcher that does, at once.
            "after_cause": gone - (float(cause.read_text()) if cause.exists() else fault),
            "sentences": [line for line in said.splitlines() if line.startswith("jano-dist:")],
        }


def spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "lowest": min(values), "highest": max(values)}


def case(launcher: str, how: str, world: int, policy: str, rounds: int) -> dict[str, Any]:
    """The same fault several times."""
    ends = [end_of(launcher, how, world, policy) for _ in range(rounds)]
    row = {
        "launcher": launcher,
        "how": how,
        "world": world,
        "timeout_seconds": TIMEOUT if how in ("hang", "stuck") else 120,
        "seconds": spread([end["seconds"] for end in ends]),
        "after_cause": spread([end["after_cause"] for end in ends]),
        "exits": sorted({code for end in ends for code in end["exits"]}),
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
    parser.add_argument("--launchers", nargs="+", default=["nproc"])
    parser.add_argument("--hows", nargs="+", default=list(HOWS), choices=HOWS)
    args = parser.parse_args()
    rows = [
        case(launcher, how, world, args.policy, args.rounds)
        for launcher in args.launchers
        for how in args.hows
        for world in args.worlds
    ]
    figures = {"policy": args.policy, "step": STEP[args.policy], "rounds": args.rounds, "rows": rows}
    name = f"fail-stop-{args.policy}-{'-'.join(args.launchers)}"
    save(name, figures, [threads_of_a_rank()] * max(args.worlds))


if __name__ == "__main__":
    main()
