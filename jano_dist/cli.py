"""The command line: names -> objects -> files. Errors become one sentence and an exit code."""

import json
import math
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jano_dist.config import config_names, load_config
from jano_dist.errors import RunError, UserError

if TYPE_CHECKING:  # it imports torch, which takes seconds; a typo should not
    from jano_dist.observe import StepRecord

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)

# What typer raises for a wrong command line: click's UsageError, or its own copy under a private name.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

_INTERRUPTED = "interrupted: nothing was written"


def main() -> None:
    """Run a command. Exit code 0: done; 1: the run failed; 2: bad input; 130: interrupted."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit code; one sentence on stderr when it is not 0."""
    try:
        code = int(app(args=arguments or ["--help"], standalone_mode=False, prog_name="jano-dist") or 0)
        return _fail(_INTERRUPTED, code) if code == 130 else code
    except UserError as error:
        return _fail(str(error), 2)
    except _UsageError as error:
        return _fail(_usage(error), 2)
    except RunError as error:
        return _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(_INTERRUPTED, 130)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the video shows.")],
    out: Annotated[Path, typer.Option(help="Folder for video, pictures and run.json.")],
    config: Annotated[
        str, typer.Option(help=f"One of {', '.join(config_names())}, or a .yaml file.")
    ] = "wan-tiny",
    model: Annotated[str | None, typer.Option(help="Model name, diffusers folder or hub name.")] = None,
    policy: Annotated[str | None, typer.Option(help="jano or full.")] = None,
    preset: Annotated[str | None, typer.Option(help="conservative, balanced or fast.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, any config key; repeatable.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the noise.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames, 4n+1.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    save_latents: Annotated[bool, typer.Option(help="Also write latents.safetensors.")] = False,
) -> None:
    """Make a video from a prompt."""
    named = {
        "model.name": model,
        "sampling.seed": seed,
        "video.frames": frames,
        "video.height": height,
        "video.width": width,
        "sampling.steps": steps,
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in named.items() if value is not None]
    settings = load_config(config, preset=preset, policy=policy, overrides=[*(set_ or []), *overrides])
    if not prompt.strip():
        raise UserError("the prompt is empty: say what the video shows")

    _quiet_libraries()  # before they are imported
    from jano_dist.engine import Engine
    from jano_dist.run_folder import check_target, write_run

    check_target(out)

    console = Console(highlight=False)
    engine = Engine(settings)
    with _Bar(console) as bar:
        generation = engine.generate(prompt, observer=bar)
    write_run(out, generation, fps=settings.video.fps, save_latents=save_latents)
    _summary(console, out, generation.record)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="A video or a run folder; the reference.")],
    b: Annotated[Path, typer.Argument(help="A video or a run folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how alike two videos are: PSNR, SSIM, and LPIPS where its weights are on this machine."""
    from jano_dist import quality

    result = quality.compare(quality.load_frames(a), quality.load_frames(b))
    identical = math.isinf(result["psnr"])
    if as_json:  # JSON has no infinity
        print(json.dumps({**result, "psnr": None if identical else result["psnr"], "identical": identical}))
        return
    table = Table("measure", "value")
    table.add_row("PSNR", "identical" if identical else f"{result['psnr']:.2f} dB")
    table.add_row("SSIM", f"{result['ssim']:.4f}")
    table.add_row("LPIPS", result["lpips_note"] if result["lpips"] is None else f"{result['lpips']:.4f}")
    Console().print(table)


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say what this machine has and what that allows."""
    from jano_dist.doctor import inspect_machine, show

    facts = inspect_machine()
    if as_json:
        print(json.dumps(facts))
    else:
        show(facts, Console())


class _Bar:
    """Observer: a progress bar on a terminal, a line now and then in a log."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[step]}"), TimeRemainingColumn(), console=console, transient=True,
            disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._progress.add_task("", total=None, step="")

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def phase(self, name: str) -> None:
        self._progress.update(self._task, description=name, step="")
        if not self._console.is_terminal:
            self._console.print(name)

    def note(self, sentence: str) -> None:
        print(f"jano-dist: note: {sentence}", file=sys.stderr)

    def step(self, record: "StepRecord", steps: int) -> None:
        done, text = record.index + 1, f"{record.kind}, {record.tokens} tokens"
        self._progress.update(self._task, completed=done, total=steps, step=text)
        if not self._console.is_terminal and done % max(1, steps // 10) == 0:
            self._console.print(f"step {done}/{steps}: {text}, {record.seconds:.2f} s")


def _summary(console: Console, out: Path, record: dict[str, Any]) -> None:
    shares = ", ".join(f"{share:.0%} {name}" for name, share in record["levels"].items())
    work = record["flops"]["done"] / record["flops"]["full"]
    console.print(
        f"{out / 'video.mp4'}  ({record['seconds']['total']:.1f} s; tokens {shares}; {work:.0%} of the work)",
        soft_wrap=True,
    )
    console.print(
        f"pictures: {out / 'complexity.png'}, {out / 'timeline.png'}; record: {out / 'run.json'}",
        soft_wrap=True,
    )


def _quiet_libraries() -> None:
    """Our progress bar is the only one; the libraries' warnings about our own hooks help nobody."""
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
    if not sys.warnoptions:  # `python -W` asks to see them
        warnings.filterwarnings("ignore", module="diffusers|transformers|huggingface_hub|torch")
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def _usage(error: Any) -> str:
    """One sentence for a wrong command line."""
    command = error.ctx.command_path if error.ctx else "jano-dist"
    return f"{error.format_message()} (see `{command} --help`)"


def _fail(sentence: str, code: int) -> int:
    print(f"jano-dist: {' '.join(sentence.split())}", file=sys.stderr)  # one line, whatever is quoted in it
    return code
