"""The first hour on a machine with GPUs: is what we say true there, and what does it cost?

    python -m benchmarks.gpu_first_hour                 # all GPUs of this machine
    python -m benchmarks.gpu_first_hour --small         # minutes, on a CPU too: one layer, few tokens

In this order: versions, kernels against float64, this device against the CPU, caches in host memory, meshes
against one rank, memory against the account, seconds of every kind of step at Wan2.1-14B's true size (random
weights) against counted FLOPs, what offloading costs, decoding, ranks that are lost. It stops at the first
lie, with a sentence, and writes one dated JSON and one page. docs/gpu-first-hour.md says how to read them.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import save
from benchmarks.first_hour import Hour, Lie, cost, truth
from benchmarks.first_hour.page import write_page

PARTS: dict[str, Callable[[Hour], dict[str, Any]]] = {
    "versions": truth.what_is_here,
    "kernels": truth.kernels,
    "parity": truth.parity,
    "caches": truth.caches,
    "meshes": truth.meshes,
    "memory": cost.memory,
    "steps": cost.steps,
    "offloading": cost.offloading,
    "decode": cost.decode,
    "lost ranks": cost.lost_ranks,
}
FULL = ((81, 480, 832), (81, 720, 1280))
SMALL = ((5, 64, 96),)


def run(hour: Hour, parts: Mapping[str, Callable[[Hour], dict[str, Any]]]) -> tuple[dict[str, Any], str]:
    """Figures by part, each with its seconds, and the first lie; no sentence where there was none."""
    figures: dict[str, Any] = {}
    for name, part in parts.items():
        print(f"{name} ...", flush=True)
        started = time.perf_counter()
        try:
            found = part(hour)
        except Lie as lie:
            return figures, f"{name}: {lie}"
        figures[name] = {"took_seconds": round(time.perf_counter() - started, 1), **found}
    return figures, ""


def parse() -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--small", action="store_true", default=not cuda, help="one layer, few tokens")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the models at true width; left alone, float32 on a CPU and bfloat16 on a GPU",
    )
    parser.add_argument("--gpus", type=int, default=torch.cuda.device_count() or 2, help="or CPU ranks")
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    args = parser.parse_args()
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    return args


def main() -> None:
    args = parse()
    if args.device == "cpu":
        torch.set_num_threads(1)  # as a rank of a gang has
    with tempfile.TemporaryDirectory() as folder:
        hour = Hour(
            device=torch.device(args.device),
            gpus=args.gpus,
            dtype=args.dtype,
            layers=1 if args.small else 0,
            sizes=SMALL if args.small else FULL,
            folder=Path(folder),
        )
        figures, lie = run(hour, {name: PARTS[name] for name in args.parts})
    name = f"gpu-first-hour-{hour.name.replace(' ', '-').lower()}-{args.gpus}"
    path = save(name, {**vars(args), "device_name": hour.name, "lie": lie, "parts": figures})
    print(f"written: {write_page(path)}")
    if lie:
        sys.exit(f"stopped at the first lie: {lie}")


if __name__ == "__main__":
    main()
