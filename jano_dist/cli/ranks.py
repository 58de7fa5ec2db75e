"""A command line on several ranks: what can be said before any is started, and how they are started."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jano_dist.cli import importing
from jano_dist.cli.log import log
from jano_dist.cli.numbers import check_numbers
from jano_dist.cli.options import Launcher
from jano_dist.cli.resume import resumable
from jano_dist.config import Config, RuntimeConfig
from jano_dist.errors import UserError, count
from jano_dist.gang import Place, is_supervised
from jano_dist.libraries import quiet_libraries
from jano_dist.target import reserve, unfinished

if TYPE_CHECKING:
    from jano_dist.launchers.supervisor import Gang
    from jano_dist.metrics import RayMetrics

_RANKS_PER_CORE = 16  # far more than is of any use; beyond it a machine comes to a standstill
# Options that are the launcher's, and not the ranks'.
OPTIONS = ("--nproc", "--launcher", "--address", "--wait")


@dataclass(frozen=True)
class Launch:
    """Where ranks are started and how many; `address` and `wait` (seconds) are of a Ray cluster."""

    launcher: Launcher
    ranks: int
    address: str | None = None
    wait: float = 0.0


def check_ranks(nproc: int | None, settings: Config, place: Place, launcher: Launcher) -> None:
    """What can be said of the number of ranks before any is started.

    Raises:
        UserError: it does not fit.
    """
    if nproc is not None:
        _check_nproc(nproc, settings, place, launcher)
    elif launcher == "ray" and not is_supervised():
        raise UserError("--launcher ray starts as many ranks as --nproc says: give it")
    check_numbers(settings, ranks=nproc or place.world)


def _check_nproc(nproc: int, settings: Config, place: Place, launcher: Launcher) -> None:
    if place.world > 1:
        raise UserError("--nproc starts ranks, but torchrun has started some already: leave it out")
    if launcher == "local":
        check_cores(nproc, f"--nproc {nproc}")
    asked = {name: degree for name, degree in settings.mesh.model_dump().items() if degree}
    product = math.prod(asked.values())
    if nproc % product or (len(asked) == 3 and nproc != product):
        degrees = " x ".join(f"--{name} {degree}" for name, degree in asked.items())
        raise UserError(
            f"{degrees} is {count(product, 'rank')}, which does not fit --nproc {nproc}: "
            f"use --nproc {product}, or leave a degree out"
        )


def check_cores(ranks: int, asked: str) -> None:
    """Refuse more ranks than this machine could ever run.

    Args:
        asked: the options that ask for them.

    Raises:
        UserError: they are too many.
    """
    most = _RANKS_PER_CORE * (os.cpu_count() or 1)
    if ranks > most:
        raise UserError(
            f"{asked} is more than {_RANKS_PER_CORE} ranks for each core of this machine: "
            f"start at most {most}"
        )


def launch(where: Launch, arguments: Sequence[str], settings: Config, out: Path) -> None:
    """The same command on several ranks, of which rank 0 holds `out`; from here it is only looked at.

    Raises:
        UserError, RunError: why the ranks failed.
    """
    quiet_libraries()  # in the ranks, too
    with importing():
        from jano_dist.launchers.supervisor import Run, supervise

    with reserve(out):
        pass
    runtime, say = settings.runtime, partial(log().print, soft_wrap=True)
    with resumable(out), started_gang(where, out, runtime) as (gang, ears):
        run = Run(where.ranks, runtime.recoveries, runtime.stall_seconds, say, ears)
        supervise(gang, without_options(arguments, OPTIONS), run)
        if ears:
            ears.video(json.loads((out / "run.json").read_text(encoding="utf-8")))


@contextmanager
def started_gang(
    where: Launch, out: Path, runtime: RuntimeConfig
) -> Iterator[tuple["Gang", "RayMetrics | None"]]:
    """The gang, and where there is Ray what shows it to Prometheus."""
    if where.launcher == "local":
        from jano_dist.launchers.local import LocalGang

        yield LocalGang(where.ranks), None
        return
    from jano_dist.launchers.ray import RayGang, connected, kept_logs, wanted_unit
    from jano_dist.metrics import RayMetrics

    with connected(where.address), kept_logs(unfinished(out), out) as logs:
        gang = RayGang(where.ranks, logs=logs, wait=where.wait, unit=wanted_unit(runtime))
        yield gang, RayMetrics(out.name)


def without_options(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """A command line without some options and their values, written either way and however often."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)  # what follows are no options
    kept = [each for each in arguments[:end] if not each.startswith(tuple(f"{name}=" for name in names))]
    for name in names:
        while name in kept:
            place = kept.index(name)
            del kept[place : place + 2]
    return [*kept, *arguments[end:]]
