"""Seconds until weights that lie on the disk are where they compute, by who reads ahead of the library.

    python -m benchmarks.repeat 5 loading --folder FOLDER

The file is a transformer of Wan2.1-14B's layout (names, shapes, dtypes, shards) with fewer layers and random
bits, written into FOLDER where it is not there yet. Before each load its pages are dropped from the page
cache. `nobody`: the library maps the file, and the disk is asked as tensors are touched. `1`, `2`, `4`, `8`:
so many threads read slices of 16 MiB meanwhile. `advised`: the kernel is told (`read_ahead`). `cached`:
nothing was dropped, so this is what copying alone takes.
"""

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from diffusers import WanTransformer3DModel

from benchmarks.common import save
from jano_dist.geometry import KNOWN
from jano_dist.mesh import Mesh
from jano_dist.models.placement import place
from jano_dist.models.quiet import quiet
from jano_dist.models.read_ahead import read_ahead

MODEL = "Wan-AI/Wan2.1-T2V-14B-Diffusers"
SLICE = 2**24


def config(layers: int) -> dict[str, Any]:
    return {**KNOWN[MODEL]["transformer"], "num_layers": layers}


def write(folder: Path, layers: int) -> None:
    with torch.device("meta"):
        model = WanTransformer3DModel.from_config(config(layers))
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    for weight in model.parameters():
        weight.data.view(torch.int16).random_()
    model.save_pretrained(folder, max_shard_size="1GB")
    os.sync()  # pages that are not yet on the disk cannot be dropped


def drop(files: list[Path]) -> None:
    for file in files:
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(files: list[Path], readers: int) -> None:
    """Every slice once, into the page cache."""

    def one(file: Path, start: int) -> None:
        with file.open("rb", buffering=0) as stream:
            os.preadv(stream.fileno(), [bytearray(SLICE)], start)

    with ThreadPoolExecutor(readers) as pool:
        for file in files:
            for start in range(0, file.stat().st_size, SLICE):
                pool.submit(one, file, start)


def load(folder: Path, layers: int) -> None:
    """As the engine does it: the library maps the files, and every tensor is copied to its place."""
    with torch.device("meta"):
        skeleton = WanTransformer3DModel.from_config(config(layers))

    def mapped() -> WanTransformer3DModel:
        with quiet():
            return WanTransformer3DModel.from_pretrained(folder, dtype=torch.bfloat16)

    cpu = torch.device("cpu")
    place(mapped, skeleton, weights="replicated", mesh=Mesh.single(cpu), device=cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=6, help="0.7 GB each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not (options.folder / "config.json").exists():
        write(options.folder, options.layers)
    files = sorted(options.folder.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    load(options.folder, options.layers)  # imports

    def reader(readers: int) -> Thread:
        thread = Thread(target=read, args=(files, readers))
        thread.start()
        return thread

    ways: dict[str, Callable[[], Thread | None]] = {
        "nobody": lambda: None,
        **{str(readers): lambda readers=readers: reader(readers) for readers in (1, 2, 4, 8)},
        "advised": lambda: read_ahead(files),
        "cached": lambda: None,
    }
    rows = []
    for name, begin in ways.items():
        if name != "cached":
            drop(files)
        started = time.perf_counter()
        thread = begin()
        load(options.folder, options.layers)
        seconds = time.perf_counter() - started
        if thread:
            thread.join()
        rows.append({"reader": name, "seconds": seconds, "gigabytes_per_second": size / seconds / 1e9})
        print(rows[-1], flush=True)
    save("loading", {"bytes": size, "files": len(files), "layers": options.layers, "rows": rows})


if __name__ == "__main__":
    main()
