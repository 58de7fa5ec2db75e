"""What every benchmark shares: the result file, and policies that follow a given map."""

import json
import os
import platform
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jano_dist.observe import versions
from jano_dist.tokens.schedule import StepKind

RESULTS = Path(__file__).parent / "results"

# Within wan-tiny's vocabulary: every motion, six backgrounds, one and two objects.
PROMPTS = (
    "a red ball moves left over a navy striped background",
    "a yellow box moves right over a teal checked background",
    "a green triangle moves up over a maroon plain background",
    "a white diamond moves down over a olive dotted background",
    "a magenta ball stays still over a gray striped background",
    "a blue box moves left over a beige plain background",
    "a cyan ball moves right and a red box stays still over a gray plain background",
    "a yellow triangle moves down and a blue ball moves up over a maroon checked background",
)


def save(name: str, figures: dict[str, Any]) -> Path:
    """Write `results/<date>-<name>.json` with the figures and what they were measured with."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{date.today()}-{name}.json"
    path.write_text(json.dumps({"ran": _ran(), **figures}, indent=1) + "\n")
    print(f"written: {path}")
    return path


def _ran() -> dict[str, Any]:
    return {
        "date": str(date.today()),
        "command": " ".join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "versions": versions(),
        "processor": platform.processor() or platform.machine(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
    return names[0] if names else ""


class FixedMap:
    """Policy: a full step, a refresh, then the given kinds over and over, on a map given from outside."""

    def __init__(self, levels: Tensor, kinds: Sequence[StepKind]) -> None:
        self._levels, self._kinds = levels, kinds

    def decide(self, step: int) -> StepKind:
        if step < 2:
            return (StepKind.FULL, StepKind.REFRESH)[step]
        return self._kinds[step % len(self._kinds)]

    def observe(self, step: int, velocity: Tensor) -> Tensor | None:
        return self._levels if step == 0 else None
