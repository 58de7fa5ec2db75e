"""The commands gathered; an error becomes one sentence and an exit code."""

import sys
from typing import Any

import typer

from jano_dist.cli import compare, doctor, generate, plan
from jano_dist.errors import RunError, UserError
from jano_dist.gang import Place, Stopped, fail_stop, find_place

app = typer.Typer(
    add_completion=False,
    help="Make videos with Wan2.1 models on one to many GPUs, computing mostly the regions that need it.",
    pretty_exceptions_enable=False,
)
for command in (generate.generate, compare.compare, plan.plan, doctor.doctor):
    app.command()(command)

# What typer raises for a wrong command line: click's UsageError, or its own copy under a private name.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

_INTERRUPTED = "interrupted: nothing was written"


def main() -> None:
    """Run a command. Exit code 0: done; 1: the run failed; 2: bad input; 130: interrupted."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit code; one sentence on stderr when it is not 0.

    A rank of a gang that fails does not return: it tells the others and ends (`gang.fail_stop`).
    """
    try:
        code = int(
            app(args=arguments or ["--help"], standalone_mode=False, prog_name="jano-dist", obj=arguments)
            or 0
        )
        if code == 130:  # how typer tells of Ctrl-C
            raise KeyboardInterrupt
        return code
    except (Exception, KeyboardInterrupt, Stopped) as error:
        place, ending = _place_or_alone(), _ending(error)
        if place.world > 1:
            fail_stop(place, error, ending, _say)
        if ending is None:
            raise
        _say(ending[1])
        return ending[0]


def _ending(error: BaseException) -> tuple[int, str] | None:
    """Exit code and sentence of an error; None for one that nobody foresaw."""
    if isinstance(error, UserError):
        return 2, str(error)
    if isinstance(error, _UsageError):
        return 2, _usage(error)
    if isinstance(error, RunError):
        return 1, str(error)
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return 130, _INTERRUPTED
    return None


def _place_or_alone() -> Place:
    try:
        return find_place()
    except UserError:  # then that is what is being reported
        return Place()


def _usage(error: Any) -> str:
    """One sentence for a wrong command line."""
    command = error.ctx.command_path if error.ctx else "jano-dist"
    return f"{error.format_message()} (see `{command} --help`)"


def _say(sentence: str) -> None:
    print(f"jano-dist: {' '.join(sentence.split())}", file=sys.stderr)  # one line, whatever is quoted in it
