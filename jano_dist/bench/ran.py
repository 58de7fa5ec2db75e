"""How a figure came to be: what every file of results says."""

import os
import platform
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from jano_dist.observe import device_name, versions


def ran(arguments: Sequence[str], device: torch.device, ranks: int) -> dict[str, Any]:
    """Command, date, machine and versions of this process.

    Args:
        arguments: of `jano-dist`. device: that it computes on. ranks: of its gang.
    """
    return {
        "figures": "measured",
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["jano-dist", *arguments]),
        "versions": versions(),
        "device": device_name(device),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "ranks": ranks,
        "threads": torch.get_num_threads(),
    }


def how_it_ran(arguments: Sequence[str]) -> dict[str, Any]:
    """Machine, versions, command and date of a measurement that has ended; its ranks lived elsewhere."""
    return {
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["jano-dist", *arguments]),
        "versions": versions(),
        "system": platform.platform(terse=True),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }


def cpu_name() -> str:
    """The processor, as Linux calls it."""
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # there is none but on Linux
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in info.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()
