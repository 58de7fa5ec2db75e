"""What every benchmark shares: prompts, the result file, ranks, and stand-ins for policy and decoder."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jano_dist.bench.prompts import PROMPTS as PROMPTS
from jano_dist.bench.ran import cpu_name
from jano_dist.bench.stand_ins import Undecoded as Undecoded
from jano_dist.observe import versions
from jano_dist.policies import Policy
from jano_dist.tokens.schedule import StepKind
from tests.gang.harness import gang

RESULTS = Path(__file__).parent / "results"
ELSEWHERE = "BENCHMARK_RESULTS"  # environment: another folder for result files


def on_ranks(world: int, target: Any, *args: Any, **limits: float) -> tuple[list[Any], list[int]]:
    """`gang`, and beside every rank's result the threads it computed with."""
    answers = gang(world, _with_threads, target, args, **limits)
    return [value for value, _ in answers], [threads for _, threads in answers]


def _with_threads(target: Any, args: tuple[Any, ...]) -> tuple[Any, int]:
    return target(*args), torch.get_num_threads()


def save(name: str, figures: dict[str, Any], threads: Sequence[int] | None = None) -> Path:
    """Write `<date>-<name>.json` with the figures and how they were measured.

    Args:
        threads: of every process that was measured, rank 0 first (see `on_ranks`); None: of this process,
            which measured itself.
    """
    folder = Path(os.environ.get(ELSEWHERE, RESULTS))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{date.today()}-{name}.json"
    threads = [torch.get_num_threads()] if threads is None else list(threads)
    path.write_text(json.dumps({"ran": _ran(threads), **figures}, indent=1) + "\n")
    print(f"written: {path}")
    return path


def _ran(threads: list[int]) -> dict[str, Any]:
    return {
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "versions": versions(),
        "processor": platform.processor() or platform.machine(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "ranks": len(threads),
        "threads": threads,
    }


def _git(*arguments: str) -> str:
    """What git says of this checkout; nothing where there is none."""
    try:
        call = ["git", "-C", str(RESULTS.parent), *arguments]
        return subprocess.run(call, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


class FixedMap(Policy):
    """Policy: a full step, a refresh, then the given kinds over and over, on a map given from outside."""

    def __init__(self, levels: Tensor, kinds: Sequence[StepKind]) -> None:
        self._levels, self._kinds = levels, kinds

    def decide(self, step: int) -> StepKind:
        if step < 2:
            return (StepKind.FULL, StepKind.REFRESH)[step]
        return self._kinds[step % len(self._kinds)]

    def observe(self, step: int, velocity: Tensor) -> Tensor | None:
        return self._levels if step == 0 else None
