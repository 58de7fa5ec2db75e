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

from jano_dist.config import Config, config_names, load_config
from jano_dist.errors import RunError, UserError
from jano_dist.gang import Place, Stopped, enlist, fail_stop, find_place
from jano_dist.gang import Progress as GangProgress

if TYPE_CHECKING:  # it imports torch, which takes seconds; a typo should not
    from jano_dist.engine import Generation
    from jano_dist.observe import Observer, StepRecord

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)

# What typer raises for a wrong command line: click's UsageError, or its own copy under a private name.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

_RANKS_PER_CORE = 16  # far more than is of any use; beyond it a machine comes to a standstill
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


@app.command()
def generate(
    context: typer.Context,
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
    nproc: Annotated[int | None, typer.Option(help="Ranks to start on this machine.", min=1)] = None,
    cfg: Annotated[int | None, typer.Option(help="2: one guidance branch per half of the ranks.")] = None,
    kv: Annotated[int | None, typer.Option(help="Shards of a branch's keys and values.")] = None,
    ulysses: Annotated[int | None, typer.Option(help="Ranks that share a branch's heads.")] = None,
    save_latents: Annotated[bool, typer.Option(help="Also write latents.safetensors.")] = False,
) -> None:
    """Make a video from a prompt, on one process or on several ranks (--nproc, or torchrun)."""
    named = {
        "model.name": model,
        "sampling.seed": seed,
        "video.frames": frames,
        "video.height": height,
        "video.width": width,
        "sampling.steps": steps,
        "mesh.cfg": cfg,
        "mesh.kv": kv,
        "mesh.ulysses": ulysses,
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in named.items() if value is not None]
    settings = load_config(config, preset=preset, policy=policy, overrides=[*(set_ or []), *overrides])
    if not prompt.strip():
        raise UserError("the prompt is empty: say what the video shows")

    place = find_place()
    if nproc is not None:
        _check_ranks(nproc, settings, place)
    if nproc is not None and nproc > 1:
        from jano_dist.launchers.local import launch

        return launch(nproc, _without_option(context.obj, "--nproc"))
    generation = _generate(settings, prompt, out, place)
    if place.is_coordinator:
        from jano_dist.run_folder import write_run

        write_run(out, generation, fps=settings.video.fps, save_latents=save_latents)
        _summary(_Log(highlight=False), out, generation.record)


def _check_ranks(nproc: int, settings: Config, place: Place) -> None:
    """What can be said of --nproc before any rank is started."""
    if place.world > 1:
        raise UserError("--nproc starts ranks, but torchrun has started some already: leave it out")
    most = _RANKS_PER_CORE * (os.cpu_count() or 1)
    if nproc > most:
        raise UserError(
            f"--nproc {nproc} is more than {_RANKS_PER_CORE} ranks for each core of this machine: "
            f"start at most {most}"
        )
    asked = {name: degree for name, degree in settings.mesh.model_dump().items() if degree}
    product = math.prod(asked.values())
    if nproc % product or (len(asked) == 3 and nproc != product):
        degrees = " x ".join(f"--{name} {degree}" for name, degree in asked.items())
        raise UserError(
            f"{degrees} is {product} ranks, which does not fit --nproc {nproc}: "
            f"use --nproc {product}, or leave a degree out"
        )


def _without_option(arguments: list[str], name: str) -> list[str]:
    """A command line without an option and its value, written either way and however often."""
    kept = [argument for argument in arguments if not argument.startswith(f"{name}=")]
    while name in kept:
        place = kept.index(name)
        del kept[place : place + 2]
    return kept


def _generate(settings: Config, prompt: str, out: Path, place: Place) -> "Generation":
    """This rank's part of the work, from the first import to the video."""
    if place.world > 1:
        enlist()
    _quiet_libraries()  # before they are imported
    from jano_dist.engine import Engine
    from jano_dist.observe import NullObserver
    from jano_dist.run_folder import check_target
    from jano_dist.runtime import join

    if place.is_coordinator:
        check_target(out)
    with join(settings.runtime) as store, _Bar(_Log(highlight=False)) as bar:
        engine = Engine(settings)
        if place.is_coordinator and place.world > 1:
            bar.say(engine.mesh_choice)
        heard: Observer = bar if place.is_coordinator else NullObserver()
        return engine.generate(prompt, observer=GangProgress(heard, store, place))


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


@app.command()
def plan(
    config: Annotated[str, typer.Option(help=f"One of {', '.join(config_names())}, or a .yaml file.")],
    gpus: Annotated[int, typer.Option(help="Ranks, one per GPU.", min=1)],
    gpu_memory: Annotated[float, typer.Option(help="Of one GPU, in GiB, as nvidia-smi shows it.")],
    gpus_per_node: Annotated[int | None, typer.Option(help="8, or all, if left out.", min=1)] = None,
    policy: Annotated[str | None, typer.Option(help="jano or full.")] = None,
    preset: Annotated[str | None, typer.Option(help="conservative, balanced or fast.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, any config key; repeatable.")
    ] = None,
    active: Annotated[float, typer.Option(help="Share of the tokens that is active.")] = 0.25,
    moderate: Annotated[float, typer.Option(help="Share of the tokens that is moderate.")] = 0.2,
    cfg: Annotated[int | None, typer.Option(help="2: one guidance branch per half of the ranks.")] = None,
    kv: Annotated[int | None, typer.Option(help="Shards of a branch's keys and values.")] = None,
    ulysses: Annotated[int | None, typer.Option(help="Ranks that share a branch's heads.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a run would need on GPUs that need not be here: memory, FLOPs and communication."""
    degrees = {"mesh.cfg": cfg, "mesh.kv": kv, "mesh.ulysses": ulysses}
    overrides = [f"{key}={degree}" for key, degree in degrees.items() if degree is not None]
    settings = load_config(config, preset=preset, policy=policy, overrides=[*(set_ or []), *overrides])
    _quiet_libraries()  # before they are imported
    from jano_dist.account.table import make_plan, show_plan

    found = make_plan(
        settings,
        gpus=gpus,
        gpus_per_node=gpus_per_node,
        gpu_memory=gpu_memory,
        active=active,
        moderate=moderate,
    )
    if as_json:
        print(json.dumps(found))
    else:
        show_plan(found, Console(highlight=False))


class _Log(Console):
    """A console whose reader may leave (`| head`, a lost connection): the run goes on without it."""

    def on_broken_pipe(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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

    def say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)

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
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost rank is reported by us, once
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


def _say(sentence: str) -> None:
    print(f"jano-dist: {' '.join(sentence.split())}", file=sys.stderr)  # one line, whatever is quoted in it
