"""`jano-dist generate`: one video from a prompt, on one rank or on many."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from jano_dist.cli import importing
from jano_dist.cli.log import Bar, log
from jano_dist.cli.options import (
    CONFIG_HELP,
    DEFAULT_CONFIG,
    AddressOption,
    Call,
    CfgOption,
    KvOption,
    Launcher,
    LauncherOption,
    Lora2Option,
    LoraOption,
    PolicyOption,
    PresetOption,
    SetOption,
    UlyssesOption,
    WaitOption,
    config_overrides,
    given_path,
    named_keys,
    read_config,
    typed,
)
from jano_dist.cli.picture import sized_by_image
from jano_dist.cli.ranks import Launch, check_ranks, launch
from jano_dist.cli.resume import resumable, unfinished_run
from jano_dist.config import Config, check_prompt, parse_overrides
from jano_dist.errors import NotFinite, UserError, count
from jano_dist.gang import Place, Progress, attempt, find_place, is_supervised, recoveries
from jano_dist.libraries import quiet_libraries
from jano_dist.snapshot import SnapshotFolder, clear
from jano_dist.target import reserve, result_of, unfinished

_OTHERS = 30  # seconds for checks of the same run by other nodes


def generate(
    context: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="What the video shows.", show_default=False)] = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=given_path, metavar="FOLDER", help="For video or image, pictures and run.json."),
    ] = None,
    config: Annotated[
        str | None, typer.Option(help=f"{CONFIG_HELP} Without one: that of the model, or {DEFAULT_CONFIG}.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model name, diffusers folder or hub name.")] = None,
    lora: LoraOption = None,
    lora_2: Lora2Option = None,
    policy: PolicyOption = None,
    preset: PresetOption = None,
    set_: SetOption = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the noise.")] = None,
    image: Annotated[
        str | None, typer.Option(metavar="FILE", help="What the video begins with (image-to-video).")
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Frames, 4n+1.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    nproc: Annotated[int | None, typer.Option(help="Ranks to start.", min=1)] = None,
    launcher: LauncherOption = "local",
    address: AddressOption = None,
    wait: WaitOption = 0,
    cfg: CfgOption = None,
    kv: KvOption = None,
    ulysses: UlyssesOption = None,
    save_latents: Annotated[bool, typer.Option(help="Also write latents.safetensors.")] = False,
    trace: Annotated[
        bool, typer.Option("--trace", help="Also write trace.json, a timeline of all ranks.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Only say whether it would run.")] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            parser=given_path, metavar="FOLDER", help="Go on with the run whose --out this was, on any mesh."
        ),
    ] = None,
) -> None:
    """Make a video, or an image (--frames 1), from a prompt, on one process or on several ranks (--nproc, or
    torchrun)."""
    call, place = context.ensure_object(Call), find_place()
    prompt, out, settings = _asked_for(context.params)
    check_ranks(nproc, settings, place, launcher)
    speaks = place.is_coordinator and not is_supervised()
    if check:
        _check(settings, out, nproc or place.world, place.local_world if nproc is None else nproc, launcher)
        return
    if nproc is not None and (nproc > 1 or launcher == "ray"):
        launch(Launch(launcher, nproc, address, wait), call.arguments, settings, out)
    else:
        with resumable(out) if place.world == 1 else nullcontext():
            files = {"save_latents": save_latents, "trace": trace}
            _generate(settings, prompt, out, place, resume=resume is not None, **files)
    if speaks:
        log().print(f"the whole command took {time.monotonic() - call.started:.1f} s", soft_wrap=True)


def _asked_for(params: dict[str, Any]) -> tuple[str, Path, Config]:
    """Prompt, folder and config, as typed or as an unfinished run was begun with."""
    pairs, named = params["set_"], named_keys(params)
    prompt = None if params["prompt"] is None else typed(params["prompt"])
    out: Path | None = params["resume"] or params["out"]
    if params["resume"]:
        given = [f"--{name}" for name in ("out", "config", "preset", "policy") if params[name] is not None]
        if given:
            raise UserError(
                f"--resume goes on with what the run was begun with: leave {', '.join(given)} out"
            )
        prompt, settings = unfinished_run(params["resume"], prompt, pairs=pairs, named=named)
    else:
        config, policy = params["config"], params["policy"]
        settings = read_config(config, preset=params["preset"], policy=policy, pairs=pairs, named=named)
    if prompt is None or out is None:
        missing = "argument 'prompt'" if prompt is None else "option '--out'"
        raise UserError(f"Missing {missing} (see `jano-dist generate --help`)")
    check_prompt(prompt)
    if not params["resume"]:
        settings = sized_by_image(settings, parse_overrides(config_overrides(pairs, named)))
    return prompt, out, settings


def _check(settings: Config, out: Path, world: int, local_world: int, launcher: Launcher) -> None:
    """All that can be refused without ranks; on a Ray cluster they need not be of this machine."""
    with reserve(out, patience=_OTHERS):
        quiet_libraries()  # before they are imported
        with importing():
            from jano_dist.preflight import preflight

        mesh = preflight(settings, world=world, local_world=local_world if launcher == "local" else None)
    log().print(f"it would run: {mesh or count(world, 'rank')}", soft_wrap=True)


def _generate(
    settings: Config, prompt: str, out: Path, place: Place, *, resume: bool, save_latents: bool, trace: bool
) -> None:
    """This rank's part of the work, from the first import to the written video."""
    with _holding(out, place), Bar(log()) as bar:
        quiet_libraries()  # before they are imported
        with importing():
            from jano_dist.engine import Engine
            from jano_dist.observe import NullObserver
            from jano_dist.run_folder import write_run
            from jano_dist.runtime import join
            from jano_dist.trace import begin_trace

        snapshots = SnapshotFolder(
            unfinished(out),
            settings.snapshot.seconds,
            required=resume and attempt() == 0,
            note=bar.note,
            found=lambda step: bar.say(f"going on from step {step}"),
        )
        with join(settings.runtime) as store:
            progress = Progress(bar if place.is_coordinator else NullObserver(), store, place)
            observer = begin_trace(progress, asked=trace)
            engine = Engine(settings, observer=observer)
            observer.watch(engine.mesh)
            if place.is_coordinator and place.world > 1:
                bar.say(engine.mesh_choice)
            with _dropping_what_is_of_no_use(out):
                generation = engine.generate(prompt, observer=observer, snapshots=snapshots)
            tracks = observer.gather()
            generation.record["recoveries"] = recoveries(store)
        if place.is_coordinator:
            bar.phase("write")
            write_run(out, generation, fps=settings.video.fps, save_latents=save_latents, tracks=tracks)
            clear(unfinished(out))
    if place.is_coordinator:
        with suppress(KeyboardInterrupt):  # the video is there, and to say that it is not would be wrong
            _summary(log(), out, generation.record)


@contextmanager
def _dropping_what_is_of_no_use(out: Path) -> Iterator[None]:
    try:
        yield
    except NotFinite:
        clear(unfinished(out))
        raise


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
        f"{result_of(out)}  ({record['seconds']['total']:.1f} s; tokens {shares}; {work:.0%} of the work)",
        soft_wrap=True,
    )
    console.print(
        f"pictures: {out / 'complexity.png'}, {out / 'timeline.png'}; record: {out / 'run.json'}",
        soft_wrap=True,
    )
