"""Faults of every kind, at every place, under every launcher: does the run finish, and how soon?

Two ranks make a small video with jano. One of them is killed, raises, or is stopped (SIGSTOP; it is found by
its missing signs of life, after `STALL` seconds), while the text is encoded, in the warm-up, in the middle,
or in decoding; which of the two changes from round to round. With `supervisor` it is that which is killed,
in the middle, and its run is resumed by hand. `back_seconds` is from the fault until the ranks that were
started again have finished a step, or have begun to decode where no step was left; `twice` counts steps that
were computed a second time. A snapshot is taken as often as can be.
"""

import argparse
import hashlib
import itertools
import json
import os
import signal
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
STALL = 5  # seconds
STEPS = 50
PLACES = {"encode": "encode", "warm-up": "4", "middle": "25", "decode": "decode"}
REACHED = {"encode": 0, "warm-up": 4, "middle": 25, "decode": STEPS}  # steps finished at the fault
HOWS = ("kill", "raise", "stop", "supervisor")
VIDEO = ("--frames", "17", "--height", "128", "--width", "128", "--steps", str(STEPS), "--save-latents")
SETTINGS = ("snapshot.seconds=0", f"runtime.stall_seconds={STALL}", "runtime.timeout_seconds=60")
PYTHONPATH = str(Path(__file__).parents[1])
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}


def command(launcher: str, out: Path) -> list[str]:
    """A command line of two ranks that break as BROKEN says."""
    call = ["generate", PROMPTS[0], "--out", str(out), *VIDEO]
    call += [word for setting in SETTINGS for word in ("--set", setting)]
    if launcher == "torchrun":
        agent = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "2"]
        return [sys.executable, *agent, str(LAUNCH / "broken.py"), *call]
    more = ["--nproc", "2"] + (["--launcher", "ray"] if launcher == "ray" else [])
    return [sys.executable, str(LAUNCH / "supervised.py"), *call, *more]


def start(launcher: str, folder: Path, broken: str) -> "subprocess.Popen[bytes]":
    environment = {**ENVIRONMENT, "BROKEN": broken, "FAULTS": str(folder)}
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # as launchers/torchrun.sh
    return subprocess.Popen(
        command(launcher, folder / "run"),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def video(folder: Path) -> str:
    """A digest of the latents and the video."""
    digest = hashlib.sha256()
    for name in ("latents.safetensors", "video.mp4"):
        digest.update((folder / "run" / name).read_bytes())
    return digest.hexdigest()


def left(folder: Path) -> list[str]:
    """What should not be left of a run that has ended."""
    beside = [path.name for path in folder.iterdir() if path.is_dir() and path.name != "run"]
    return beside + [f"process {pid}" for pid in pids(folder) if alive(pid)]


def one(launcher: str, how: str, rank: int, place: str, wanted: str) -> dict[str, Any]:
    """One broken run, to its end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = start(launcher, folder, f"{how}:{rank}:{PLACES[place]}:1")
        _, said = process.communicate(timeout=300)
        if process.returncode:
            return {"finished": False, "said": said.decode()[-500:]}
        fault = float((folder / "time").read_text())
        record = json.loads((folder / "run" / "run.json").read_text())
        return {
            "finished": True,
            "same": video(folder) == wanted,
            "back_seconds": float((folder / "back").read_text()) - fault,
            "twice": REACHED[place] - record["resumed_from_step"],
            "left": left(folder),
        }


def supervisor(launcher: str, wanted: str) -> dict[str, Any]:
    """The supervisor (or torchrun's agent) killed in the middle, and the run resumed by hand."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = start(launcher, folder, "hang:1:25:1")
        while not (folder / "time").exists():
            time.sleep(0.05)
        killed = time.time()
        process.send_signal(signal.SIGKILL)
        process.wait()
        while any(alive(pid) for pid in pids(folder)) and time.time() < killed + 60:
            time.sleep(0.02)
        gone = time.time() - killed
        call = [
            sys.executable,
            "-m",
            "jano_dist",
            "generate",
            "--resume",
            str(folder / "run"),
            "--save-latents",
        ]
        call += ["--nproc", "2"] + (["--launcher", "ray"] if launcher == "ray" else [])
        resumed = subprocess.run(call, env=ENVIRONMENT, capture_output=True, timeout=300)
        if resumed.returncode:
            return {"finished": False, "said": resumed.stderr.decode()[-500:]}
        record = json.loads((folder / "run" / "run.json").read_text())
        twice = REACHED["middle"] - record["resumed_from_step"]
        whole = {"finished": True, "same": video(folder) == wanted, "left": left(folder)}
        return {**whole, "ranks_gone_seconds": gone, "twice": twice}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "lowest": min(values), "highest": max(values)}


def row(launcher: str, how: str, place: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Several runs of one case."""
    whole = [run for run in runs if run["finished"]]
    seconds = [key for key in ("back_seconds", "ranks_gone_seconds") if whole and key in whole[0]]
    figures = {
        "launcher": launcher,
        "how": how,
        "place": place,
        "runs": len(runs),
        "finished": len(whole),
        "same_video": sum(run["same"] for run in whole),
        **{key: spread([run[key] for run in whole]) for key in seconds},
        "twice_most": max((run["twice"] for run in whole), default=None),
        "left": sorted({thing for run in whole for thing in run["left"]}),
        "said": sorted({run["said"] for run in runs if not run["finished"]}),
    }
    print(json.dumps(figures), flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--launchers", nargs="+", default=["nproc", "ray", "torchrun"])
    parser.add_argument("--places", nargs="+", default=list(PLACES), choices=list(PLACES))
    parser.add_argument("--hows", nargs="+", default=list(HOWS), choices=list(HOWS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:  # undisturbed
        process = start("nproc", Path(name), "raise:9:0")
        assert process.wait(300) == 0
        wanted = video(Path(name))
    rows = []
    for launcher in args.launchers:
        for how, place in itertools.product(args.hows, args.places):
            runs = [
                supervisor(launcher, wanted)
                if how == "supervisor"
                else one(launcher, how, turn % 2, place, wanted)
                for turn in range(args.rounds)
            ]
            rows.append(row(launcher, how, place, runs))
    figures = {"stall_seconds": STALL, "steps": STEPS, "rounds": args.rounds, "rows": rows}
    save(f"faults-{'-'.join([*args.launchers, *args.hows])}", figures, [1, 1])


if __name__ == "__main__":
    main()
