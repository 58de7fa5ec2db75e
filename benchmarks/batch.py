"""A batch whose driver and ranks are killed: is every video there, once, and the one a single run makes?

    python -m benchmarks.batch

And its pace: videos per minute of an undisturbed batch, imports and loading included, against single
commands, as many at a time as the batch has gangs. Of these a sample is measured (--singles).

Ranks and drivers are killed by SIGKILL a moment after so many videos are done (KILLS), so that it strikes in
the middle of one. A video made twice would be written twice: run folders are looked at all the time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import load_file

from benchmarks.common import PROMPTS, save
from jano_dist import cli
from tests.launch.conftest import alive

COMMAND = (sys.executable, "-m", "jano_dist")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SIZE = ("--frames", "9", "--height", "64", "--width", "64", "--save-latents")
OFTEN = ("--set", "snapshot.seconds=1")
# What is killed when which share of the videos is done; of a rank also which one.
KILLS = ((0.1, "rank", 0), (0.25, "driver", 0), (0.4, "rank", -1), (0.6, "driver", 0), (0.8, "rank", 1))
MOMENT = 0.7  # seconds


def jobs(number: int) -> list[dict[str, Any]]:
    """Lines of a prompts file."""
    return [{"prompt": PROMPTS[index % len(PROMPTS)], "seed": index} for index in range(number)]


def names(number: int) -> list[str]:
    """The folders that a batch gives them."""
    return [f"{line:04}" for line in range(1, number + 1)]


def single(job: dict[str, Any], out: Path) -> list[str]:
    """The command line of one video."""
    return ["generate", job["prompt"], "--seed", str(job["seed"]), "--out", str(out), *SIZE]


class Batch:
    """A batch in processes of its own, started as often as it takes."""

    def __init__(self, folder: Path, number: int, gangs: int, nproc: int, *more: str) -> None:
        self.out, self._number = folder / "out", number
        prompts = folder / "prompts.jsonl"
        folder.mkdir()
        prompts.write_text("".join(f"{json.dumps(job)}\n" for job in jobs(number)))
        own = ("--out", str(self.out), "--gangs", str(gangs), "--nproc", str(nproc))
        self._call = [*COMMAND, "batch", str(prompts), *own, *SIZE, *more]
        self.seen: dict[str, int] = {}  # when each run folder was written
        self.twice: set[str] = set()
        self.starts = 0

    def start(self) -> None:
        self.starts += 1
        self.process = subprocess.Popen(self._call, env=ENVIRONMENT, stdout=subprocess.DEVNULL)

    def look(self) -> int:
        """How many videos are done; notes the ones that are written again."""
        for name in names(self._number):
            record = self.out / name / "run.json"
            if record.exists():
                written = record.stat().st_mtime_ns
                if self.seen.setdefault(name, written) != written:
                    self.twice.add(name)
        return len(self.seen)

    def ranks(self) -> list[psutil.Process]:
        """Those that run now, gang by gang: the children of the driver's children."""
        zygotes = sorted(psutil.Process(self.process.pid).children(), key=lambda each: each.pid)
        return [rank for zygote in zygotes for rank in sorted(zygote.children(), key=lambda each: each.pid)]

    def wait(self, done: float) -> None:
        """Until so many videos are done, or the driver has ended."""
        while self.look() < done and self.process.poll() is None:
            time.sleep(0.05)


def kill(batch: Batch, what: str, which: int) -> dict[str, Any]:
    """Kill a rank, or the driver: then wait until all its processes are gone, and start it again."""
    time.sleep(MOMENT)
    while what == "rank" and not batch.ranks():  # a gang has just been started again
        time.sleep(0.05)
    own = psutil.Process(batch.process.pid).children(recursive=True)
    struck, at = time.monotonic(), len(batch.seen)
    if what == "rank":
        ranks = batch.ranks()
        ranks[which % len(ranks)].kill()
        return {"what": what, "done": at}
    batch.process.kill()
    batch.process.wait()
    while any(alive(process.pid) for process in own):
        time.sleep(0.01)
    seconds = time.monotonic() - struck
    batch.start()
    return {"what": what, "done": at, "processes": len(own), "seconds_until_gone": seconds}


def disturbed(folder: Path, number: int, gangs: int, nproc: int) -> tuple[Batch, dict[str, Any]]:
    """A batch in which things are killed; what was killed, and what was left."""
    batch, began, kills = Batch(folder, number, gangs, nproc, *OFTEN), time.monotonic(), []
    batch.start()
    for share, what, which in KILLS:
        batch.wait(share * number)
        kills.append(kill(batch, what, which))
    batch.wait(float("inf"))
    batch.look()
    rows = [json.loads(line) for line in (batch.out / "results.jsonl").read_text().splitlines()]
    return batch, {
        "seconds": time.monotonic() - began,
        "exit": batch.process.returncode,
        "starts": batch.starts,
        "kills": kills,
        "attempts": sum(row["attempts"] for row in rows),
        "statuses": sorted({row["status"] for row in rows}),
        "recoveries_in_records": sum(len(_record(batch.out, name)["recoveries"]) for name in names(number)),
        "resumed_in_the_middle": sum(
            _record(batch.out, name)["resumed_from_step"] > 0 for name in names(number)
        ),
        "left_over": sorted(
            path.name
            for path in batch.out.iterdir()
            if ".jano-dist-" in path.name or "unfinished" in path.name
        ),
    }


def _record(out: Path, name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((out / name / "run.json").read_text())
    return record


def undisturbed(folder: Path, number: int, gangs: int, nproc: int) -> dict[str, float]:
    """Seconds of the whole command, and its pace."""
    batch, began = Batch(folder, number, gangs, nproc), time.monotonic()
    batch.start()
    if batch.process.wait():
        raise SystemExit("the undisturbed batch failed")
    seconds = time.monotonic() - began
    return {"seconds": seconds, "videos_per_minute": 60 * number / seconds}


def singles(folder: Path, number: int, at_once: int) -> dict[str, float]:
    """Seconds of some of the videos as commands of their own, `at_once` of them at a time, and their pace."""
    left, running, began = list(zip(jobs(number), names(number), strict=True)), [], time.monotonic()
    while left or running:
        while left and len(running) < at_once:
            job, name = left.pop(0)
            call = [*COMMAND, *single(job, folder / name)]
            running.append(subprocess.Popen(call, env=ENVIRONMENT, stdout=subprocess.DEVNULL))
        if any(process.poll() for process in running):
            raise SystemExit("a single command failed")
        running = [process for process in running if process.poll() is None]
        time.sleep(0.01)
    seconds = time.monotonic() - began
    return {"videos": number, "seconds": seconds, "videos_per_minute": 60 * number / seconds}


def references(folder: Path, number: int) -> None:
    """Every video by a run of its own, in this process."""
    for job, name in zip(jobs(number), names(number), strict=True):
        if cli.run(single(job, folder / name)):
            raise SystemExit(f"the single run {name} failed")


def differing(ours: Path, theirs: Path, wanted: Sequence[str]) -> Iterator[str]:
    """Videos whose latents or pixels are not the same bits, or that are not there."""
    for name in wanted:
        files = [folder / name / "latents.safetensors" for folder in (ours, theirs)]
        same = all(file.exists() for file in files)
        same = same and bool((load_file(files[0])["latents"] == load_file(files[1])["latents"]).all())
        videos = [folder / name / "video.mp4" for folder in (ours, theirs)]
        if not (same and videos[0].read_bytes() == videos[1].read_bytes()):
            yield name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--videos", type=int, default=40)
    parser.add_argument("--gangs", type=int, default=2)
    parser.add_argument("--nproc", type=int, default=1)
    parser.add_argument("--singles", type=int, default=8, help="commands of their own that are measured")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, wanted = Path(folder), names(args.videos)
        pace = undisturbed(root / "undisturbed", args.videos, args.gangs, args.nproc)
        alone = singles(root / "singles", args.singles, args.gangs)
        references(root / "references", args.videos)
        batch, what = disturbed(root / "disturbed", args.videos, args.gangs, args.nproc)
        figures = {
            "videos": args.videos,
            "gangs": args.gangs,
            "ranks_per_gang": args.nproc,
            "size": SIZE,
            "undisturbed": pace,
            "single_commands": {**alone, "at_once": args.gangs},
            "times_as_fast": pace["videos_per_minute"] / alone["videos_per_minute"],
            "disturbed": what,
            "lost": [name for name in wanted if name not in batch.seen],
            "twice": sorted(batch.twice),
            "not_the_same_bits": {
                "undisturbed": list(differing(root / "undisturbed/out", root / "references", wanted)),
                "singles": list(differing(root / "singles", root / "references", wanted[: args.singles])),
                "disturbed": list(differing(batch.out, root / "references", wanted)),
            },
        }
    print(json.dumps(figures, indent=1))
    save("batch", figures, [1] * args.gangs * args.nproc)


if __name__ == "__main__":
    main()
