"""`jano-dist bench scaling`: seconds, efficiency and retention of the gain by number of ranks."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jano_dist.cli import importing
from jano_dist.cli.bench.options import OutOption, listed
from jano_dist.cli.log import log
from jano_dist.cli.numbers import check_numbers
from jano_dist.cli.options import (
    CONFIG_HELP,
    DEFAULT_CONFIG,
    AddressOption,
    Call,
    LauncherOption,
    PresetOption,
    SetOption,
    WaitOption,
    named_keys,
    read_config,
)
from jano_dist.cli.ranks import OPTIONS, Launch, check_cores, started_gang, without_options
from jano_dist.errors import Interrupted, RunError, UserError
from jano_dist.gang import Place, find_place, is_supervised
from jano_dist.libraries import quiet_libraries
from jano_dist.target import hold

if TYPE_CHECKING:
    from jano_dist.bench.parts import PartsFolder
    from jano_dist.bench.scaling_cases import Question

_GO_ON = "the same command goes on"


def scaling(
    context: typer.Context,
    out: OutOption,
    config: Annotated[
        str | None, typer.Option(help=f"{CONFIG_HELP} Without one: that of the model, or {DEFAULT_CONFIG}.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model name, diffusers folder or hub name.")] = None,
    preset: PresetOption = None,
    set_: SetOption = None,
    frames: Annotated[int | None, typer.Option(help="Frames, 4n+1.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    worlds: Annotated[
        str, typer.Option(help="Numbers of ranks to start, such as 1,2,4; under torchrun there is one.")
    ] = "1,2",
    rounds: Annotated[int, typer.Option(help="How often everything takes its turn.", min=1)] = 5,
    policies: Annotated[str, typer.Option(help="What is compared with full.")] = "full,jano",
    meshes: Annotated[
        str, typer.Option(help="auto, all, or such as 2x1x1,1x1x2 (cfg x kv x ulysses).")
    ] = "auto",
    active: Annotated[
        float | None, typer.Option(help="Share of active tokens; else the policy's own map.")
    ] = None,
    moderate: Annotated[float, typer.Option(help="Share of moderate tokens, with --active.")] = 0.2,
    peers: Annotated[str, typer.Option(help="diffusers, xdit, both, or none.")] = "diffusers,xdit",
    launcher: LauncherOption = "local",
    address: AddressOption = None,
    wait: WaitOption = 0,
) -> None:
    """Measure denoising on more and more ranks: full, jano, and other engines on the same work."""
    call, place = context.ensure_object(Call), find_place()
    question = _question(context.params)
    numbers = listed(worlds, int, "--worlds")
    here = place.world > 1 or is_supervised()
    for world in (place.world,) if here else numbers:
        if world < 1:
            raise UserError(f"--worlds {world}: give numbers from 1")
        for each in question.configs.values():
            check_numbers(each, ranks=world)
        if launcher == "local" and not here:
            check_cores(world, f"--worlds {world}")
    quiet_libraries()
    folder = _folder(out, question)
    if is_supervised():
        _take_turns(question, folder, place, rounds)
        return
    with hold(out) if place.is_coordinator else nullcontext():
        if place.is_coordinator:
            folder.begin()
        if place.world > 1:
            _take_turns(question, folder, place, rounds)
        else:
            where = partial(Launch, launcher, address=address, wait=wait)
            _drive(question, folder, call, [(turn, where(n)) for turn, n in _turns(numbers, rounds)])
        if place.is_coordinator:
            _conclude(folder, call)


def _turns(numbers: Sequence[int], rounds: int) -> list[tuple[int, int]]:
    from jano_dist.bench.scaling_cases import turns

    return list(turns(numbers, rounds))


def _question(params: dict[str, Any]) -> "Question":
    from jano_dist.bench.scaling_cases import PEERS, Question, check_shares, parse_meshes

    names = listed(params["policies"], str, "--policies")
    peers = () if params["peers"] == "none" else listed(params["peers"], str, "--peers")
    unknown = [peer for peer in peers if peer not in PEERS]
    if unknown:
        raise UserError(f"--peers {unknown[0]!r} is not known: give {', '.join(PEERS)}, or none")
    if names[0] != "full":
        names = ("full", *(name for name in names if name != "full"))  # what all others are compared with
    check_shares(params["active"], params["moderate"])
    facts = {"preset": params["preset"], "pairs": params["set_"], "named": named_keys(params)}
    return Question(
        configs={name: _config(params["config"], name, **facts) for name in names},
        meshes=parse_meshes(listed(params["meshes"], str, "--meshes")),
        active=params["active"],
        moderate=params["moderate"],
        peers=peers,
    )


def _config(name: str | None, policy: str, *, preset: str | None, pairs: Any, named: Any) -> Any:
    """The config with another policy; what `--set` says of jano's settings is not for the others."""
    own = [pair for pair in pairs or [] if policy != "full" or not pair.startswith("policy.")]
    return read_config(name, preset=preset, policy=policy, pairs=own, named=named)


def _folder(out: Path, question: "Question") -> "PartsFolder":
    with importing():
        from jano_dist.bench.parts import PartsFolder

    return PartsFolder(out, question.as_json())


def _take_turns(question: "Question", folder: "PartsFolder", place: Place, rounds: int) -> None:
    """This rank's part."""
    with importing():
        from jano_dist.bench.scaling import Rank
        from jano_dist.runtime import join

    say = partial(log().print, soft_wrap=True)
    with join(next(iter(question.configs.values())).runtime):
        Rank(question, folder, say).take_turns(rounds)


def _drive(
    question: "Question", folder: "PartsFolder", call: Call, starts: Sequence[tuple[int, Launch]]
) -> None:
    """Start the ranks of every turn that has something missing."""
    left = [(turn, where) for turn, where in starts if _missing(question, folder, turn, where.ranks)]
    if len(left) < len(starts):
        log().print(f"going on: {len(starts) - len(left)} of {len(starts)} turns are done")
    arguments = without_options(call.arguments, (*OPTIONS, "--rounds"))
    try:
        for turn, where in left:
            _start(question, where, [*arguments, f"--rounds={turn}"], folder.path)
    except RunError as error:
        raise RunError(f"{error}; what is measured is kept, and {_GO_ON}") from error
    except KeyboardInterrupt as error:
        raise Interrupted(f"interrupted: what is measured is kept, and {_GO_ON}") from error


def _missing(question: "Question", folder: "PartsFolder", turn: int, world: int) -> bool:
    from jano_dist.models import read_geometry

    given = next(iter(question.configs.values()))
    geometry = read_geometry(given.model.name)
    guided = geometry.branches(given.sampling.guidance) == 2
    cases = question.cases(world, heads=geometry.heads, guided=guided)
    return not all(folder.has(case.part(world, turn)) for case in cases)


def _start(question: "Question", where: Launch, arguments: Sequence[str], out: Path) -> None:
    with importing():
        from jano_dist.launchers.supervisor import Run, supervise

    runtime = next(iter(question.configs.values())).runtime
    with started_gang(where, out, runtime) as (gang, _):
        say = partial(log().print, soft_wrap=True)
        supervise(gang, arguments, Run(where.ranks, runtime.recoveries, runtime.stall_seconds, say))


def _conclude(folder: "PartsFolder", call: Call) -> None:
    """Table, plot and JSON of all that the folder has."""
    from jano_dist.bench.scaling_report import notes, plot, show
    from jano_dist.bench.scaling_summary import summarise

    parts, console = folder.parts(), log()
    summary = summarise(parts)
    machines = sorted({part["device"] for part in parts if "device" in part})
    folder.write_result("scaling", call.arguments, {"devices": machines, **summary, "notes": notes(summary)})
    plot(folder.path / "scaling.png", summary)
    show(summary, console)
    console.print(f"see {folder.path / 'scaling.json'} and {folder.path / 'scaling.png'}", soft_wrap=True)
