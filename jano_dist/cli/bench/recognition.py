"""`jano-dist bench recognition`: how well early scores foretell where the work is, and what that is worth."""

import math
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from jano_dist.cli import importing
from jano_dist.cli.bench.options import OutOption, listed
from jano_dist.cli.log import log
from jano_dist.cli.numbers import check_numbers
from jano_dist.cli.options import (
    CONFIG_HELP,
    DEFAULT_CONFIG,
    Call,
    PresetOption,
    SetOption,
    given_path,
    named_keys,
    read_config,
)
from jano_dist.errors import UserError
from jano_dist.gang import find_place
from jano_dist.libraries import quiet_libraries
from jano_dist.target import hold


def recognition(
    context: typer.Context,
    out: OutOption,
    config: Annotated[
        str | None, typer.Option(help=f"{CONFIG_HELP} Without one: that of the model, or {DEFAULT_CONFIG}.")
    ] = None,
    preset: PresetOption = None,
    set_: SetOption = None,
    frames: Annotated[int | None, typer.Option(help="Frames, 4n+1.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            parser=given_path, help="A .txt or .jsonl file, a prompt a line; else wan-tiny's eight."
        ),
    ] = None,
    guidances: Annotated[str | None, typer.Option(help="Such as 3,4; else the config's.")] = None,
    shifts: Annotated[str | None, typer.Option(help="Such as 1,3,5; else the config's.")] = None,
    warmups: Annotated[str | None, typer.Option(help="Such as 4,6,8; else the config's.")] = None,
    active: Annotated[float, typer.Option(help="Share of the blocks that is active.")] = 0.3,
    moderate: Annotated[float, typer.Option(help="Share of the blocks that is moderate.")] = 0.3,
    outcomes: Annotated[
        str,
        typer.Option(help="Scores with whose maps videos are made: all, none, or such as 'published; bend'."),
    ] = "all",
) -> None:
    """Judge early scores by where the work of full runs is, and by the videos made with their maps."""
    if find_place().world > 1:
        raise UserError("bench recognition runs on one process: start it without torchrun")
    named = named_keys(context.params)
    settings = read_config(config, preset=preset, policy=None, pairs=set_, named=named)
    check_numbers(settings, ranks=1)
    sampling, policy = settings.sampling, settings.policy
    at = listed(guidances, float, "--guidances") if guidances else (sampling.guidance,)
    by: tuple[float | None, ...] = listed(shifts, float, "--shifts") if shifts else (sampling.shift,)
    seen = listed(warmups, int, "--warmups") if warmups else (getattr(policy, "warmup", 0),)
    if any(not 0 <= value < math.inf for value in at):
        raise UserError("--guidances should be numbers from 0")
    if any(value is not None and not 0 < value < math.inf for value in by):
        raise UserError("--shifts should be numbers above 0")
    quiet_libraries()
    with importing():
        from jano_dist.bench.prompts import prompts_and_seeds
        from jano_dist.bench.recognition import NAMES, Question, Regime, check_question

    question = Question(
        config=settings,
        prompts=prompts_and_seeds(prompts, settings),
        regimes=tuple(Regime(guidance, shift) for guidance in at for shift in by),
        warmups=seen,
        active=active,
        moderate=moderate,
        outcomes=NAMES if outcomes == "all" else _names(outcomes),
    )
    check_question(question)
    with hold(out):
        _measure(question, out, context.ensure_object(Call))


def _names(text: str) -> tuple[str, ...]:
    """Scores, of which some have a comma in their name."""
    return () if text == "none" else tuple(name.strip() for name in text.split(";") if name.strip())


def _measure(question: Any, out: Path, call: Call) -> None:
    """Every part that is not there yet, then what all of them say."""
    from jano_dist.bench.parts import PartsFolder
    from jano_dist.bench.recognition import measure, summarise
    from jano_dist.bench.recognition_report import plot, show
    from jano_dist.engine import Engine

    folder, console = PartsFolder(out, question.as_json()), log()
    folder.begin()
    left = [(regime, n) for regime, n in question.items() if not folder.has(part_name(regime, n))]
    total = len(question.regimes) * len(question.prompts)
    model: Any = Engine(question.config).model if left else None
    began = time.monotonic()
    for done, (regime, number) in enumerate(left, 1):
        folder.keep(part_name(regime, number), measure(question, model, regime, number))
        minutes = (time.monotonic() - began) / done * (len(left) - done) / 60
        console.print(
            f"{total - len(left) + done} of {total}: guidance {regime.guidance:g}, shift {regime.shift}, "
            f"prompt {number + 1} ({minutes:.1f} min left)",
            soft_wrap=True,
        )
    rows = summarise(folder.parts())
    folder.write_result("recognition", call.arguments, {**question.as_json(), "rows": rows})
    plot(out / "recognition.png", rows)
    show(rows, console)
    console.print(f"see {out / 'recognition.json'} and {out / 'recognition.png'}", soft_wrap=True)


def part_name(regime: Any, number: int) -> str:
    """Of the figures of one prompt in one regime."""
    return f"guidance-{regime.guidance:g}-shift-{regime.shift}-prompt-{number + 1:03}"
