"""The commands gathered; an error becomes one sentence and an exit code."""

import io
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from typing import Any

import typer

from jano_dist.cli import INTERRUPTED, batch, bench, compare, doctor, generate, plan, submit, tune
from jano_dist.cli.log import Output
from jano_dist.cli.options import Call
from jano_dist.errors import Interrupted, RunError, UserError
from jano_dist.gang import Place, Stopped, fail_stop, find_place, is_supervised

app = typer.Typer(
    add_completion=False,
    help="Make videos with Wan2.1 models on one to many GPUs, computing mostly the regions that need it.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    generate.generate,
    batch.batch,
    submit.submit,
    tune.tune,
    compare.compare,
    plan.plan,
    doctor.doctor,
):
    app.command()(command)
app.add_typer(bench.app, name="bench")

# What typer raises for a wrong command line: click's UsageError, or its own copy under a private name.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def run(arguments: list[str], *, started: float, begin: Callable[[], object] = lambda: None) -> int:
    """Run a command line and return its exit code; one sentence on stderr when it is not 0.

    A rank of a gang that fails does not return: it tells the others and ends (`gang.fail_stop`).

    Args:
        started: `time.monotonic()` when the command began.
        begin: called first, here, where a signal that it lets through is answered.
    """
    try:
        begin()
        code = _command(arguments, Call(arguments, started))
        if code == 130:  # how typer tells of Ctrl-C
            raise KeyboardInterrupt
        return code
    except (Exception, KeyboardInterrupt, Stopped) as error:
        place, ending = _place_or_alone(), _ending(error, arguments)
        if place.world > 1 or is_supervised():
            fail_stop(place, error, ending, _say)
        if ending is None:
            raise
        _say(ending[1])
        return ending[0]


def _command(arguments: list[str], call: Call) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):  # a run must not fail for a letter that cannot be shown
        sys.stdout.reconfigure(errors="replace")
    with redirect_stdout(Output(sys.stdout or io.StringIO())):
        code = app(args=arguments or ["--help"], standalone_mode=False, prog_name="jano-dist", obj=call)
        print(end="", flush=True)  # a full disk says so only now
    return int(code or 0)


def _ending(error: BaseException, arguments: Sequence[str]) -> tuple[int, str] | None:
    """Exit code and sentence of an error; None for one that nobody foresaw."""
    if isinstance(error, UserError):
        return 2, str(error)
    if isinstance(error, _UsageError):
        return 2, _usage(error, arguments)
    if isinstance(error, RunError):
        return 1, str(error)
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return 130, INTERRUPTED
    if isinstance(error, Interrupted):
        return 130, str(error)
    if isinstance(error, Stopped):  # whoever stopped it knows why
        return 143, ""
    return None


def _place_or_alone() -> Place:
    try:
        return find_place()
    except UserError:  # then that is what is being reported
        return Place()


def _usage(error: Any, arguments: Sequence[str]) -> str:
    """One sentence for a wrong command line."""
    option = getattr(error, "option_name", "")
    sentences = [text for text in arguments if text.startswith("-") and " " in text and "=" not in text]
    # `-a red ball` is read as the options -a, -r, ...
    if option and any(text[:2] == option[:2] for text in sentences):
        return (
            f"{sentences[0]!r} begins with a dash: to use it as a prompt put -- before it, as the last option"
        )
    command = error.ctx.command_path if error.ctx else "jano-dist"
    return f"{error.format_message()} (see `{command} --help`)"


def _say(sentence: str) -> None:
    """One line on stderr, whatever is quoted in it; nothing where there is nothing to say."""
    if sentence:
        with suppress(OSError):  # nobody can be told then
            print(f"jano-dist: {' '.join(sentence.split())}", file=sys.stderr, flush=True)
