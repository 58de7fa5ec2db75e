"""What snapshots cost: bytes against a formula, and seconds against those of the run.

wan-tiny: one video with and one without, in turns, in this process; at the default interval and as often as
can be. Wan-14B at 1280x720x81: a state of its true shapes (random values, diffusers' own UniPC scheduler) is
packed and written here; the cost is those seconds over the default interval, since at most one is in it.
"""

import argparse
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from diffusers import UniPCMultistepScheduler

from benchmarks.common import PROMPTS, save
from jano_dist import Engine, load_config
from jano_dist.config import Config, SnapshotConfig
from jano_dist.denoise import Denoiser
from jano_dist.geometry import Geometry
from jano_dist.sampling.scheduler_state import scheduler_state
from jano_dist.snapshot import NoSnapshots, Snapshot, SnapshotFolder, Snapshots, newest_whole

# Wan2.1-14B, written down a second time: channels, text tokens and their width.
CHANNELS, TEXT_TOKENS, TEXT_DIM = 16, 512, 4096
LATENT, TOKENS = (21, 90, 160), 75_600  # of 1280x720x81


def state_bytes(latent: int, tokens: int, row: int, text: int, element: int) -> int:
    """Bytes of a snapshot's tensors but the scheduler's tables of a value per step.

    Args:
        latent: its values; float32, as are UniPC's two model outputs and its last sample.
        row: values of a token's velocity. text: values of both embeddings. element: bytes of these two.
    """
    return 4 * latent * 4 + tokens * (row * element + 4 + 1) + text * element


class Counted:
    """Snapshots of a folder, with the seconds that keeping them takes and their bytes."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self._kept = SnapshotFolder(folder, seconds, required=False, note=print)
        self.newest, self.due = self._kept.newest, self._kept.due
        self.bytes: list[int] = []

    def keep(self, step: int, packed: bytes) -> None:
        self._kept.keep(step, packed)
        self.bytes.append(len(packed))


def timed(engine: Engine, snapshots: Snapshots) -> tuple[float, float]:
    """Seconds of the whole generation, and those of them in taking and writing snapshots."""
    spent, keep = [], Denoiser._keep

    def timed_keep(*args: Any) -> None:
        started = time.perf_counter()
        keep(*args)
        spent.append(time.perf_counter() - started)

    with mock.patch.object(Denoiser, "_keep", timed_keep):
        started = time.perf_counter()
        engine.generate(PROMPTS[0], snapshots=snapshots)
        return time.perf_counter() - started, sum(spent)


def tiny(rounds: int) -> dict[str, Any]:
    """Over the same videos without snapshots, median of `rounds` pairs."""
    settings: Config = load_config("wan-tiny")
    engine = Engine(settings)
    timed(engine, NoSnapshots())  # imports
    rows = {}
    for name, seconds in (("default", SnapshotConfig().seconds), ("as often as can be", 0.0)):
        ratios, shares, kept = [], [], Counted(Path(), 0)
        for turn in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                kept = Counted(Path(folder) / "kept", seconds)
                pair = {"with": kept, "without": NoSnapshots()}
                took = {key: timed(engine, pair[key]) for key in sorted(pair, reverse=bool(turn % 2))}
                ratios.append(took["with"][0] / took["without"][0])
                shares.append(took["with"][1] / took["with"][0])
        rows[name] = {
            "interval_seconds": seconds,
            "snapshots": len(kept.bytes),
            "share_of_run": spread(shares),
            "over_without": spread(ratios),
        }
        rows[name]["bytes"] = max(kept.bytes)
    geometry: Geometry = engine.model.geometry
    t, h, w = engine.latent_shape
    latent = geometry.channels * t * h * w
    tokens = t * (h // 2) * (w // 2)
    text = 2 * settings.model.max_sequence_length * geometry.text_dim
    predicted = state_bytes(latent, tokens, geometry.row_width, text, engine.model.dtype.itemsize)
    return {"rounds": rounds, "tokens": tokens, "bytes_predicted": predicted, "intervals": rows}


def large(rounds: int) -> dict[str, Any]:
    """Snapshots of the 14B model's state: bytes, and seconds to take and write one, and to read it."""
    latent = torch.randn(CHANNELS, *LATENT)
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    scheduler.set_timesteps(50)
    for timestep in scheduler.timesteps[:3]:
        scheduler.step(torch.randn(1, *latent.shape), timestep, latent[None], return_dict=False)
    facts, tables = scheduler_state(scheduler, "scheduler.")
    tensors = {
        "latent": latent,
        "velocity": torch.randn(TOKENS, CHANNELS * 4).bfloat16(),
        "sigmas": torch.rand(TOKENS),
        "levels": torch.ones(TOKENS, dtype=torch.uint8),
        "text": torch.randn(2, TEXT_TOKENS, TEXT_DIM).bfloat16(),
        **tables,
    }
    snapshot = Snapshot(3, tensors, {"scheduler": facts})
    with tempfile.TemporaryDirectory() as name:
        turns = [keeping(snapshot, Path(name) / "kept") for _ in range(rounds)]
    text = 2 * TEXT_TOKENS * TEXT_DIM
    kept = spread([pack + write for pack, write, _ in turns])
    return {
        "bytes": len(snapshot.pack()),
        "bytes_predicted": state_bytes(latent.numel(), TOKENS, CHANNELS * 4, text, 2),
        "seconds": dict(zip(("pack", "write", "read"), map(spread, zip(*turns, strict=True)), strict=True)),
        "share_of_interval": {key: each / SnapshotConfig().seconds for key, each in kept.items()},
    }


def keeping(snapshot: Snapshot, folder: Path) -> tuple[float, float, float]:
    """Seconds to pack a snapshot, to write it to disk, and to read and check it."""
    started = time.perf_counter()
    packed = snapshot.pack()
    packing = time.perf_counter() - started
    SnapshotFolder(folder, 0, required=False, note=print).keep(snapshot.step, packed)
    writing = time.perf_counter() - started - packing
    started = time.perf_counter()
    newest_whole(folder)
    return packing, writing, time.perf_counter() - started


def spread(values: Iterable[float]) -> dict[str, float]:
    numbers = list(values)
    return {"median": median(numbers), "lowest": min(numbers), "highest": max(numbers)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    figures = {"wan-tiny": tiny(args.rounds), "Wan-14B 1280x720x81": large(args.rounds)}
    print(figures)
    save("snapshots", figures)


if __name__ == "__main__":
    main()
