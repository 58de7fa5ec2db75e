"""The README's first example and its full run, as copied: the seconds that the commands themselves show.

Both commands run in turns. `making` is what run.json says of encoding, denoising and decoding; `command` is
all of it, with what start-up (imports, loading) and writing cost.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import save
from jano_dist.media import load_frames
from jano_dist.quality import psnr

README = Path(__file__).parents[1] / "README.md"
PARTS = ("encode", "denoise", "decode")


def examples() -> dict[str, list[str]]:
    """The first two commands of the README that make a video, without their --out."""
    lines = re.findall(r'^jano-dist generate ("[^"]*")(.*?)--out', README.read_text(), re.MULTILINE)
    words = [["generate", prompt.strip('"'), *more.split()] for prompt, more in lines[:2]]
    assert [len(each) for each in words] == [2, 4], "the README's examples have changed"
    return {"example": words[0], "full": words[1]}


def run(words: list[str], out: Path) -> dict[str, float]:
    """Seconds of one command."""
    began = time.perf_counter()
    call = [sys.executable, "-m", "jano_dist", *words, "--out", str(out)]
    subprocess.run(call, check=True, capture_output=True)
    whole = time.perf_counter() - began
    record = json.loads((out / "run.json").read_text())
    flops, seconds = record["flops"], record["seconds"]
    making = sum(seconds[part] for part in PARTS)
    work = flops["done"] / flops["full"]
    return {"denoise": seconds["denoise"], "making": making, "command": whole, "work": work}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "lowest": min(values), "highest": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rounds: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as name:
        for _ in range(args.rounds):
            rounds.append({side: run(words, Path(name) / side) for side, words in examples().items()})
            print(json.dumps(rounds[-1]), flush=True)
        decibels = psnr(load_frames(Path(name) / "full"), load_frames(Path(name) / "example"))
    figures: dict[str, Any] = {
        side: {key: spread([each[side][key] for each in rounds]) for key in rounds[0][side]}
        for side in examples()
    }
    figures["speedup"] = {
        key: spread([each["full"][key] / each["example"][key] for each in rounds])
        for key in ("denoise", "making", "command")
    }
    save("example", {"examples": examples(), "rounds": args.rounds, "psnr_of_the_mp4": decibels, **figures})


if __name__ == "__main__":
    main()
