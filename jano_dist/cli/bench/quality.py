"""`jano-dist bench quality`: how fast every policy is, and how far its videos are from the full run's."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from jano_dist.batch import read_plan
from jano_dist.bench.cases import Case, check_cases, default_cases, preset_case, read_cases
from jano_dist.bench.folder import BenchFolder, Plan
from jano_dist.bench.report import Comparison, left, write_report
from jano_dist.cli import importing
from jano_dist.cli.bench.progress import Meter
from jano_dist.cli.bench.ranks import launch_bench
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
    SetOption,
    UlyssesOption,
    WaitOption,
    config_name,
    config_overrides,
    given_path,
    named_keys,
    typed,
)
from jano_dist.cli.ranks import Launch, check_ranks
from jano_dist.config import Config, check_prompt, load_config, preset_names
from jano_dist.degrees import choose_degrees, valid_degrees
from jano_dist.errors import Interrupted, RunError, UserError, count
from jano_dist.gang import Place, Progress, find_place, is_supervised
from jano_dist.geometry import quick_geometry
from jano_dist.libraries import quiet_libraries
from jano_dist.target import hold

_GO_ON = "start the same command again to go on"


def quality(
    context: typer.Context,
    out: Annotated[
        Path,
        typer.Option(parser=given_path, metavar="FOLDER", help="For the page, its videos and quality.json."),
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(parser=given_path, metavar="FILE", help="A .txt or .jsonl file, a prompt a line."),
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be given several times.")] = None,
    seeds: Annotated[int, typer.Option(help="Seeds of each prompt, from sampling.seed on.", min=1)] = 1,
    cases: Annotated[
        Path | None,
        typer.Option(parser=given_path, metavar="FILE", help="YAML: name -> config keys and values."),
    ] = None,
    policy: Annotated[
        list[str] | None, typer.Option("--policy", help="Only cases of this policy; may be given again.")
    ] = None,
    config: Annotated[
        str | None, typer.Option(help=f"{CONFIG_HELP} Without one: that of the model, or {DEFAULT_CONFIG}.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model name, diffusers folder or hub name.")] = None,
    set_: SetOption = None,
    frames: Annotated[int | None, typer.Option(help="Frames, 4n+1.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps of the full run.")] = None,
    nproc: Annotated[int | None, typer.Option(help="Ranks to start.", min=1)] = None,
    launcher: LauncherOption = "local",
    address: AddressOption = None,
    wait: WaitOption = 0,
    cfg: CfgOption = None,
    kv: KvOption = None,
    ulysses: UlyssesOption = None,
) -> None:
    """Compare policies with the full run: speed-up, PSNR, SSIM, FLIP, flicker, and a page to look at.

    What is made stays: the same command goes on where it was ended.
    """
    call, place = context.ensure_object(Call), find_place()
    plan, folder = _plan(context.params, nproc or place.world), BenchFolder(out)
    check_ranks(nproc, plan.config, place, launcher)
    if is_supervised() or place.world > 1:
        _measure(folder, plan, place, call)
        return
    with hold(out):
        folder.check()
        where = Launch(launcher, plan.ranks, address, wait)
        with _resumable(folder, plan):
            _fill(folder, plan, where, place, call)
        _say(write_report(folder, plan), folder)


def _plan(params: Mapping[str, Any], ranks: int) -> Plan:
    """What the command line asks for, looked at as far as it can be without torch."""
    overrides = config_overrides(params["set_"], named_keys(params))
    name = config_name(params["config"], overrides)
    base = load_config(name, overrides=overrides)
    rows = {row: load_config(name, preset=row, overrides=overrides) for row in preset_names(name)}
    presets = [preset_case(row, base, preset) for row, preset in rows.items()]
    cases = _cases(params["cases"], params["policy"] or [], presets, _floors(base, ranks))
    check_cases(cases, base)
    for case in cases:
        own = case.matched(base, 0.5) if case.like else case
        check_numbers(own.config(base), ranks=ranks)
    first = base.sampling.seed
    prompts = _prompts(params["prompts"], params["prompt"] or [], base)
    return Plan(base, cases, prompts, range(first, first + params["seeds"]), ranks)


def _fill(folder: BenchFolder, plan: Plan, where: Launch, place: Place, call: Call) -> None:
    """Make the rows that are not there, here or on ranks that are started for it."""
    if not left(folder, plan):
        return
    if where.ranks > 1 or where.launcher == "ray":
        launch_bench(where, call.arguments, plan.config.runtime, folder.path)
    else:
        _measure(folder, plan, place, call)


def _measure(folder: BenchFolder, plan: Plan, place: Place, call: Call) -> None:
    """This rank's part of the work."""
    quiet_libraries()
    with importing():
        from jano_dist.bench.quality import measure_all
        from jano_dist.bench.ran import ran
        from jano_dist.bench.runs import Runs
        from jano_dist.observe import NullObserver
        from jano_dist.quality import measures
        from jano_dist.runtime import join

    alone = place.world > 1 and not is_supervised()  # under torchrun nobody else looks after the folder
    with hold(folder.path) if alone and place.is_coordinator else nullcontext():
        if alone and place.is_coordinator:
            folder.check()
        todo = left(folder, plan) if place.is_coordinator else 0
        videos = len(plan.pairs) * (len(plan.cases) + 1)
        meter = Meter(log(), videos, videos - todo)
        with join(plan.config.runtime) as store, meter if place.is_coordinator else nullcontext():
            listener = Progress(meter if place.is_coordinator else NullObserver(), store, place)
            runs = Runs(plan.config, folder=folder.path / "full", judge=measures, observer=listener)
            facts = ran(call.arguments, runs.base.model.device, place.world)
            measure_all(runs, plan, folder, facts, meter)
        if alone and place.is_coordinator:
            _say(write_report(folder, plan), folder)


def _cases(
    path: Path | None, policies: Sequence[str], presets: Sequence[Case], floors: Sequence[Case]
) -> list[Case]:
    """The file's; the usual ones where there is none, and of the policies that are asked for, too."""
    own = [] if path is None else read_cases(path)
    if path is None or policies:
        names = {case.name for case in own}
        usual = default_cases(presets, floors=floors, policies=[typed(name) for name in policies])
        own += [case for case in usual if case.name not in names]
    return own


def _floors(base: Config, ranks: int) -> list[Case]:
    """Runs that compute everything, and differ from the full run only in rounding."""
    floors = []
    if base.model.dtype in ("auto", "float32"):
        floors.append(Case("floor: bfloat16", {"policy.name": "full", "model.dtype": "bfloat16"}))
    geometry = quick_geometry(base.model.name)
    if ranks > 1 and geometry:
        facts: dict[str, Any] = {
            "world": ranks, "heads": geometry.heads, "guided": geometry.branches(base.sampling.guidance) == 2
        }  # fmt: skip
        own = choose_degrees(base.mesh, **facts)
        for other in [degrees for degrees in valid_degrees(**facts) if degrees != own][:1]:
            name = " x ".join(f"{dim} {degree}" for dim, degree in other._asdict().items() if degree > 1)
            changes = {f"mesh.{dim}": degree for dim, degree in other._asdict().items()}
            floors.append(Case(f"floor: {name}", {"policy.name": "full", **changes}))
    return floors


def _prompts(path: Path | None, given: Sequence[str], base: Config) -> list[str]:
    """All prompts, each once."""

    def no_changes(changes: Mapping[str, Any]) -> Config:
        if changes:
            raise UserError(f"it sets {', '.join(changes)}: give prompts only, and use --set for all of them")
        return base

    found = [typed(text) for text in given]
    if path is not None:
        plan, _ = read_plan(path, no_changes, skip_bad=False)
        for job in plan.jobs:
            if (job.seed, job.negative_prompt) != (base.sampling.seed, base.sampling.negative_prompt):
                raise UserError(
                    f"{path}, line {job.line}: it has a seed or a negative prompt of its own: leave these "
                    "out, and use --seeds and --set for all prompts"
                )
        found += [job.prompt for job in plan.jobs]
    if not found:
        raise UserError("there is no prompt: give --prompts FILE, or --prompt once or several times")
    for text in found:
        check_prompt(text)
    return list(dict.fromkeys(found))


@contextmanager
def _resumable(folder: BenchFolder, plan: Plan) -> Iterator[None]:
    """However it ends early: what is made stays."""
    try:
        yield
    except (UserError, RunError) as error:
        if folder.drop_empty():
            raise
        raise type(error)(f"{error}; {_state(folder, plan)}") from error
    except KeyboardInterrupt as error:
        if folder.drop_empty():
            raise
        raise Interrupted(f"interrupted: {_state(folder, plan)}") from error


def _state(folder: BenchFolder, plan: Plan) -> str:
    videos = len(plan.pairs) * (len(plan.cases) + 1)
    return f"{videos - left(folder, plan)} of {count(videos, 'video')} are made: {_GO_ON}"


def _say(comparison: Comparison, folder: BenchFolder) -> None:
    """The table's most important columns, and where the rest is."""
    table = Table("case", "work", "denoising", "PSNR mean", "worst", "FLIP", box=None)
    for case in comparison.cases:
        psnr, fast = case["psnr"], case["speedup"]
        table.add_row(
            case["name"],
            f"{case['work']['mean']:.0%}",
            f"{fast['mean']:.2f}x" if fast else "-",
            f"{psnr['mean']:.1f}" if "mean" in psnr else "identical",
            f"{psnr['worst']:.1f}" if "worst" in psnr else "",
            f"{case['flip']['mean']:.4f}" if case["flip"] else "-",
        )
    console = log()
    console.print(table)
    console.print(
        f"look at {folder.path / 'index.html'}; figures: {folder.path / 'quality.json'}", soft_wrap=True
    )
