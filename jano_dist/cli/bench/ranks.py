"""A benchmark on several ranks: the same command line in each, watched as those of `generate` are."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jano_dist.cli import importing
from jano_dist.cli.log import log
from jano_dist.cli.ranks import OPTIONS, Launch, without_options
from jano_dist.config import RuntimeConfig
from jano_dist.libraries import quiet_libraries

if TYPE_CHECKING:
    from jano_dist.launchers.supervisor import Gang


def launch_bench(where: Launch, arguments: Sequence[str], runtime: RuntimeConfig, out: Path) -> None:
    """The command line on several ranks; from here it is only looked at.

    Args:
        out: the benchmark's folder; ranks of a Ray cluster write what they say to `logs` in it.

    Raises:
        UserError, RunError: why the ranks failed.
    """
    quiet_libraries()  # in the ranks, too
    with importing():
        from jano_dist.launchers.supervisor import Run, supervise

    with _gang(where, runtime, out) as gang:
        say = partial(log().print, soft_wrap=True)
        run = Run(where.ranks, runtime.recoveries, runtime.stall_seconds, say)
        supervise(gang, without_options(arguments, OPTIONS), run)


@contextmanager
def _gang(where: Launch, runtime: RuntimeConfig, out: Path) -> "Iterator[Gang]":
    if where.launcher == "local":
        from jano_dist.launchers.local import LocalGang

        yield LocalGang(where.ranks)
        return
    from jano_dist.launchers.ray import RayGang, connected, wanted_unit

    logs = out.resolve() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with connected(where.address):
        yield RayGang(where.ranks, logs=logs, wait=where.wait, unit=wanted_unit(runtime))
