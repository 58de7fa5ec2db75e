"""What a run tells about itself: step records, memory, versions; and a null observer."""

import math
import platform
import resource
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepRecord:
    """One denoising step, as one rank saw it.

    Attributes:
        index: from 0.
        kind: full, refresh, moderate, active or blocks.
        tokens: tokens computed (of each branch) by all ranks together.
        own_tokens: those computed by this rank.
        seconds: wall time, device work included.
        comm_seconds: the part of it spent in collectives, waiting for other ranks included; None where they
            are not timed (`Mesh.time_collectives`).
        comm_bytes: bytes this rank sent to others.
        blocks: of a step through caches inside the blocks, the rows computed (of each branch, over all
            layers) by part: `attn1`, `attn2`, `ffn`; and `scores`, those scored by their cross-attention.
        began: when it did, on the clock of `time.perf_counter`.
    """

    index: int
    kind: str
    tokens: int
    own_tokens: int
    seconds: float
    comm_seconds: float | None
    comm_bytes: int
    blocks: dict[str, int] | None = None
    began: float = field(default=0.0, compare=False)


# What ranks tell each other of a step: columns of `step_table`.
_PER_RANK = ("own_tokens", "seconds", "comm_seconds", "comm_bytes")


def step_table(steps: Sequence[StepRecord]) -> Tensor:
    """What differs between ranks, float64 [steps, 4] (bytes are exact below 2**53)."""
    found = [[getattr(step, name) for name in _PER_RANK] for step in steps]
    rows = [[math.nan if each is None else float(each) for each in row] for row in found]
    return torch.tensor(rows, dtype=torch.float64)


def merge_ranks(steps: Sequence[StepRecord], tables: Tensor) -> list[dict[str, Any]]:
    """The steps as `run.json` holds them, from every rank's `step_table` [world, steps, 4].

    `seconds` are the slowest rank's, `comm_bytes` all ranks' together. `comm_seconds` are the smallest
    of any rank's: the rank the others wait for waits least, so this is what communication itself cost; None
    where collectives were not timed.
    """
    merged = []
    for step, ranks in zip(steps, tables.transpose(0, 1), strict=True):
        tokens, seconds, measured, comm_bytes = ranks.T.tolist()
        comm_seconds = None if any(map(math.isnan, measured)) else measured
        merged.append(
            {
                "index": step.index,
                "kind": step.kind,
                "tokens": step.tokens,
                **({"blocks": step.blocks} if step.blocks else {}),
                "seconds": max(seconds),
                "comm_seconds": min(comm_seconds) if comm_seconds else None,
                "comm_bytes": int(sum(comm_bytes)),
                "ranks": {
                    "tokens": [int(count) for count in tokens],
                    "seconds": seconds,
                    "comm_seconds": comm_seconds,
                    "comm_bytes": [int(count) for count in comm_bytes],
                },
            }
        )
    return merged


class Observer(Protocol):
    """Hears about the walk. Raising from a method stops the generation cleanly between steps."""

    def phase(self, name: str) -> None:
        """A phase begins: load (in the command line only), encode, denoise or decode."""

    def step(self, record: StepRecord, steps: int) -> None:
        """A step of `steps` has ended."""

    def note(self, sentence: str) -> None:
        """Something the user should know that does not stop the run."""


class NullObserver:
    """Hears everything and says nothing."""

    def phase(self, name: str) -> None:
        return

    def step(self, record: StepRecord, steps: int) -> None:
        return

    def note(self, sentence: str) -> None:
        return


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given, so that a clock read after it is true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Start a new measurement of peak memory (on CPUs the operating system's figure cannot be reset)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Peak memory: of the CUDA allocator since `reset_peak`, or of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def host_memory() -> dict[str, int | None]:
    """Host memory, and no more than the container's limit where there is one."""
    total, free = _system_memory()
    for limit_file, used_file in (
        ("memory.max", "memory.current"),  # cgroup v2
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),  # cgroup v1
    ):
        try:
            limit = int(Path("/sys/fs/cgroup", limit_file).read_text())
            used = int(Path("/sys/fs/cgroup", used_file).read_text())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        total = limit if total is None else min(total, limit)
        # `used` counts file cache that could be given back, so this errs on the careful side.
        free = limit - used if free is None else min(free, limit - used)
    return {"total_bytes": total, "free_bytes": free}


def _system_memory() -> tuple[int | None, int | None]:
    """Total and available bytes from Linux's /proc/meminfo; None elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kib = {key: int(rest.split()[0]) for key, rest in (line.split(":") for line in lines)}
        return kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024
    except (OSError, ValueError, KeyError, IndexError):
        return None, None


def device_name(device: torch.device) -> str:
    """`cpu`, or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    names = ("jano_dist", "torch", "diffusers", "transformers")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}
