"""`jano-dist batch`: many prompts over several gangs, of which each loads the weights once."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jano_dist.batch import BatchFolder, Plan, Work, read_plan
from jano_dist.cli import importing
from jano_dist.cli.batch_ranks import make_jobs
from jano_dist.cli.board import Board
from jano_dist.cli.log import log
from jano_dist.cli.numbers import check_numbers
from jano_dist.cli.options import (
    CONFIG_HELP,
    DEFAULT_CONFIG,
    AddressOption,
    Call,
    CfgOption,
    KvOption,
    LauncherOption,
    Lora2Option,
    LoraOption,
    PolicyOption,
    PresetOption,
    SetOption,
    UlyssesOption,
    WaitOption,
    config_name,
    config_overrides,
    given_path,
    named_keys,
)
from jano_dist.cli.picture import sized_by_image
from jano_dist.cli.ranks import OPTIONS, Launch, check_cores, check_ranks, without_options
from jano_dist.config import Config, RuntimeConfig, load_config, parse_overrides
from jano_dist.errors import Interrupted, RunError, UserError, count
from jano_dist.gang import find_place, is_supervised
from jano_dist.libraries import quiet_libraries
from jano_dist.target import hold

if TYPE_CHECKING:
    from jano_dist.launchers.supervisor import Gang

_GO_ON = "start the same command again to go on"


def batch(
    context: typer.Context,
    prompts: Annotated[
        Path,
        typer.Argument(
            parser=given_path,
            metavar="PROMPTS",
            help="A file, a video a line: .txt, or .jsonl with prompt, seed, image, any config key.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(parser=given_path, metavar="FOLDER", help="For a run folder per video.")
    ],
    gangs: Annotated[int, typer.Option(help="Gangs, each at a video of its own.", min=1)] = 1,
    nproc: Annotated[int, typer.Option(help="Ranks of each gang.", min=1)] = 1,
    config: Annotated[
        str | None, typer.Option(help=f"{CONFIG_HELP} Without one: that of the model, or {DEFAULT_CONFIG}.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model name, diffusers folder or hub name.")] = None,
    lora: LoraOption = None,
    lora_2: Lora2Option = None,
    policy: PolicyOption = None,
    preset: PresetOption = None,
    set_: SetOption = None,
    seed: Annotated[int | None, typer.Option(help="Seed of lines that have none.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames, 4n+1.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    launcher: LauncherOption = "local",
    address: AddressOption = None,
    wait: WaitOption = 0,
    cfg: CfgOption = None,
    kv: KvOption = None,
    ulysses: UlyssesOption = None,
    skip_bad: Annotated[bool, typer.Option(help="Go on without lines that are wrong.")] = False,
    save_latents: Annotated[bool, typer.Option(help="Also write latents.safetensors.")] = False,
) -> None:
    """Make a video from every line of a file. What is done stays done: the same command goes on."""
    call, place = context.ensure_object(Call), find_place()
    if is_supervised():
        make_jobs(BatchFolder(out), place, save_latents=save_latents)
        return
    if place.world > 1:
        raise UserError("batch starts the ranks of its gangs itself: start it once, without torchrun")
    plan, problems = read_plan(prompts, _configure(context.params), skip_bad=skip_bad)
    check_ranks(nproc, plan.configs[0], place, launcher)
    if launcher == "local":
        check_cores(gangs * nproc, f"--gangs {gangs} x --nproc {nproc}")
    where, arguments = Launch(launcher, nproc, address, wait), without_options(call.arguments, _OPTIONS)
    with hold(out):
        folder = BatchFolder(out)
        folder.begin(plan)
        for problem in problems:
            print(f"jano-dist: note: left out: {problem}", file=sys.stderr)
        _drive(folder, plan, arguments, gangs, where)


_OPTIONS = (*OPTIONS, "--gangs")


def _configure(params: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Config]:
    """What a line changes -> the command line's config with that."""
    pairs = config_overrides(params["set_"], named_keys(params))
    name, overrides = config_name(params["config"], pairs), parse_overrides(pairs)

    def configure(changes: Mapping[str, Any]) -> Config:
        own = {**overrides, **changes}
        changed = load_config(name, preset=params["preset"], policy=params["policy"], overrides=own)
        changed = sized_by_image(changed, own)
        check_numbers(changed, ranks=params["nproc"])
        return changed

    return configure


def _drive(folder: BatchFolder, plan: Plan, arguments: Sequence[str], gangs: int, where: Launch) -> None:
    """Make what is left, and say what became of all."""
    work = Work(folder, plan)
    for job in work.done:
        folder.tidy(job)  # its ranks may have been ended just after it was there
    with Board(log(), work, time.monotonic()) as board:
        if work.done or work.aside:
            board.say(f"going on in {folder.path}: {board.summary()}")
        if work.left:
            with _resumable(work):
                _start(work, arguments, min(gangs, len(work.left)), where, board)
        results = folder.write_results(plan.jobs)
        board.say(f"{board.summary()}; see {results}")
    if work.aside:
        raise RunError(
            f"{count(len(work.aside), 'video')} of {len(plan.jobs)} could not be made: {results} says why; "
            f"to try again remove {results.with_name('failures.jsonl')} and {_GO_ON}"
        )


def _start(work: Work, arguments: Sequence[str], gangs: int, where: Launch, board: Board) -> None:
    quiet_libraries()  # in the ranks, too
    with importing():
        from jano_dist.launchers.fleet import make_all
        from jano_dist.launchers.supervisor import Run

    runtime = work.plan.configs[0].runtime
    run = Run(where.ranks, runtime.recoveries, runtime.stall_seconds, board.say)
    with _kept_logs(work.folder.path, gangs) as logs, _gangs(where, logs, runtime) as started:
        make_all(started, arguments, run, work, board.show)


@contextmanager
def _resumable(work: Work) -> Iterator[None]:
    """However it ends early: what is done is done."""
    try:
        yield
    except (UserError, RunError) as error:
        raise type(error)(f"{error}; {_state(work)}") from error
    except KeyboardInterrupt as error:
        raise Interrupted(f"interrupted: {_state(work)}") from error
    except SystemExit:
        print(f"jano-dist: terminated: {_state(work)}", file=sys.stderr)
        raise


def _state(work: Work) -> str:
    return f"{len(work.done)} of {count(len(work.plan.jobs), 'video')} are done: {_GO_ON}"


@contextmanager
def _kept_logs(folder: Path, gangs: int) -> Iterator[list[Path]]:
    """A folder for each gang's output; empty files do not stay."""
    logs = [folder.resolve() / "logs" / f"gang-{number}" for number in range(1, gangs + 1)]
    for each in logs:
        each.mkdir(parents=True, exist_ok=True)
    try:
        yield logs
    finally:
        for path in sorted((folder / "logs").rglob("*"), reverse=True):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
            elif path.is_file() and not path.stat().st_size:
                path.unlink()
        if not any((folder / "logs").iterdir()):
            (folder / "logs").rmdir()


@contextmanager
def _gangs(where: Launch, logs: Sequence[Path], runtime: RuntimeConfig) -> "Iterator[list[Gang]]":
    if where.launcher == "local":
        from jano_dist.launchers.local import LocalGang

        shares = _device_shares(where.ranks, len(logs), runtime)
        yield [
            LocalGang(where.ranks, environment=share, logs=log)
            for share, log in zip(shares, logs, strict=True)
        ]
        return
    from jano_dist.launchers.ray import RayGang, connected, wanted_unit

    unit = wanted_unit(runtime)
    with connected(where.address):
        yield [RayGang(where.ranks, logs=log, wait=where.wait, unit=unit) for log in logs]


def _device_shares(ranks: int, gangs: int, runtime: RuntimeConfig) -> list[dict[str, str]]:
    """Environments that show each gang of this machine CUDA devices of its own, where there are any."""
    from torch.cuda import device_count

    devices = 0 if runtime.device == "cpu" else device_count()
    if devices == 0:
        return [{}] * gangs
    if gangs * ranks > devices:
        raise UserError(
            f"{count(gangs, 'gang')} of {count(ranks, 'rank')} need {gangs * ranks} CUDA devices, and this "
            f"machine has {devices}: use fewer --gangs or a smaller --nproc, or set runtime.device to cpu"
        )
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(devices)))).split(",")
    return [
        {"CUDA_VISIBLE_DEVICES": ",".join(names[gang * ranks : (gang + 1) * ranks])} for gang in range(gangs)
    ]
