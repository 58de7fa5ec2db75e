"""`jano-dist generate`: one video from a prompt, on one rank or on many."""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from jano_dist.cli.log import Bar, Log, quiet_libraries
from jano_dist.cli.options import (
    CONFIG_HELP,
    CfgOption,
    KvOption,
    PolicyOption,
    PresetOption,
    SetOption,
    UlyssesOption,
    read_config,
)
from jano_dist.config import Config
from jano_dist.errors import UserError
from jano_dist.gang import Place, Progress, enlist, find_place

if TYPE_CHECKING:  # it imports torch, which takes seconds; a typo should not
    from jano_dist.engine import Generation
    from jano_dist.observe import Observer

_RANKS_PER_CORE = 16  # far more than is of any use; beyond it a machine comes to a standstill


def generate(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="What the video shows.")],
    out: Annotated[Path, typer.Option(help="Folder for video, pictures and run.json.")],
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
        _summary(Log(highlight=False), out, generation.record)


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
    quiet_libraries()  # before they are imported
    from jano_dist.engine import Engine
    from jano_dist.observe import NullObserver
    from jano_dist.run_folder import check_target
    from jano_dist.runtime import join

    if place.is_coordinator:
        check_target(out)
    with join(settings.runtime) as store, Bar(Log(highlight=False)) as bar:
        engine = Engine(settings)
        if place.is_coordinator and place.world > 1:
            bar.say(engine.mesh_choice)
        heard: Observer = bar if place.is_coordinator else NullObserver()
        return engine.generate(prompt, observer=Progress(heard, store, place))


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
