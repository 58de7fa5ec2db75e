"""`jano-dist generate`: one video from a prompt, on one rank or on many."""

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from jano_dist.cli import ending_at_once
from jano_dist.cli.log import Bar, log, quiet_libraries
from jano_dist.cli.numbers import check_numbers
from jano_dist.cli.options import (
    CONFIG_HELP,
    Call,
    CfgOption,
    KvOption,
    PolicyOption,
    PresetOption,
    SetOption,
    UlyssesOption,
    given_path,
    read_config,
    typed,
)
from jano_dist.config import Config, check_prompt
from jano_dist.errors import UserError, count
from jano_dist.gang import SUPERVISOR, Place, Progress, find_place
from jano_dist.target import reserve

_RANKS_PER_CORE = 16  # far more than is of any use; beyond it a machine comes to a standstill


def generate(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="What the video shows.")],
    out: Annotated[
        Path, typer.Option(parser=given_path, metavar="FOLDER", help="For video, pictures and run.json.")
    ],
    config: Annotated[str, typer.Option(help=CONFIG_HELP)] = "wan-tiny",
    model: Annotated[str | None, typer.Option(help="Model name, diffusers folder or hub name.")] = None,
    policy: PolicyOption = None,
    preset: PresetOption = None,
    set_: SetOption = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the noise.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames, 4n+1.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    nproc: Annotated[int | None, typer.Option(help="Ranks to start on this machine.", min=1)] = None,
    cfg: CfgOption = None,
    kv: KvOption = None,
    ulysses: UlyssesOption = None,
    save_latents: Annotated[bool, typer.Option(help="Also write latents.safetensors.")] = False,
    trace: Annotated[
        bool, typer.Option("--trace", help="Also write trace.json, a timeline of all ranks.")
    ] = False,
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
    settings = read_config(config, preset=preset, policy=policy, pairs=set_, named=named)
    prompt, call, place = typed(prompt), context.ensure_object(Call), find_place()
    check_prompt(prompt)
    if nproc is not None:
        _check_ranks(nproc, settings, place)
    check_numbers(settings, ranks=nproc or place.world)
    if nproc is not None and nproc > 1:
        _launch(nproc, call.arguments, out)
    else:
        _generate(settings, prompt, out, place, save_latents=save_latents, trace=trace)
    if place.is_coordinator and SUPERVISOR not in os.environ:
        log().print(f"the whole command took {time.monotonic() - call.started:.1f} s", soft_wrap=True)


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
            f"{degrees} is {count(product, 'rank')}, which does not fit --nproc {nproc}: "
            f"use --nproc {product}, or leave a degree out"
        )


def _launch(nproc: int, arguments: Sequence[str], out: Path) -> None:
    """The same command on several ranks, of which rank 0 holds `out`; from here it is only looked at."""
    with ending_at_once():
        from jano_dist.launchers.local import launch

    with reserve(out):
        pass
    launch(nproc, _without_option(arguments, "--nproc"))


def _without_option(arguments: Sequence[str], name: str) -> list[str]:
    """A command line without an option and its value, written either way and however often."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)  # what follows are no options
    kept = [argument for argument in arguments[:end] if not argument.startswith(f"{name}=")]
    while name in kept:
        place = kept.index(name)
        del kept[place : place + 2]
    return [*kept, *arguments[end:]]


def _generate(
    settings: Config, prompt: str, out: Path, place: Place, *, save_latents: bool, trace: bool
) -> None:
    """This rank's part of the work, from the first import to the written video."""
    with _holding(out, place), Bar(log()) as bar:
        quiet_libraries()  # before they are imported
        with ending_at_once():
            from jano_dist.engine import Engine
            from jano_dist.observe import NullObserver
            from jano_dist.run_folder import write_run
            from jano_dist.runtime import join
            from jano_dist.trace import begin_trace

        with join(settings.runtime) as store:
            progress = Progress(bar if place.is_coordinator else NullObserver(), store, place)
            observer = begin_trace(progress, asked=trace)
            engine = Engine(settings, observer=observer)
            observer.watch(engine.mesh)
            if place.is_coordinator and place.world > 1:
                bar.say(engine.mesh_choice)
            generation = engine.generate(prompt, observer=observer)
            tracks = observer.gather()
        if place.is_coordinator:
            bar.phase("write")
            write_run(out, generation, fps=settings.video.fps, save_latents=save_latents, tracks=tracks)
    if place.is_coordinator:
        with suppress(KeyboardInterrupt):  # the video is there, and to say that it is not would be wrong
            _summary(log(), out, generation.record)


@contextmanager
def _holding(out: Path, place: Place) -> Iterator[None]:
    """`reserve` on the rank that will write."""
    if not place.is_coordinator:
        yield
        return
    with reserve(out):
        yield


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
