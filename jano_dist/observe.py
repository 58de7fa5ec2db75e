"""What a run tells about itself: step records, memory, versions; and a null observer."""

import platform
import resource
from dataclasses import dataclass
from importlib import metadata
from typing import Protocol

import torch


@dataclass(frozen=True)
class StepRecord:
    """One denoising step.

    Attributes:
        index: from 0.
        kind: full, refresh, moderate or active.
        tokens: tokens computed (of each branch).
        seconds: wall time, device work included.
        comm_bytes: bytes this rank sent to others.
    """

    index: int
    kind: str
    tokens: int
    seconds: float
    comm_bytes: int


class Observer(Protocol):
    """Hears about the walk. Raising from a method stops the generation cleanly between steps."""

    def phase(self, name: str) -> None:
        """A phase begins: encode, denoise or decode."""

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


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    names = ("jano_dist", "torch", "diffusers", "transformers")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}
