"""`jano-dist tune`: the settings that reach a target on the user's own model, prompts and ranks."""

import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jano_dist.batch import read_plan
from jano_dist.bench.cases import Case, preset_case
from jano_dist.bench.search import CEILING, Candidate, Speed, Target, divide, rungs
from jano_dist.bench.space import candidates
from jano_dist.bench.tune_state import TuneFolder, TuneState, facts_of
from jano_dist.bench.tuning import Tuning
from jano_dist.bench.verdict import asked, preset_text, sentences, verdict
from jano_dist.cli import importing
from jano_dist.cli.bench.ranks import launch_bench
from jano_dist.cli.log import log
from jano_dist.cli.options import (
    CONFIG_HELP,
    DEFAULT_CONFIG,
    AddressOption,
    Call,
    CfgOption,
    KvOption,
    LauncherOption,
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
from jano_dist.cli.ranks import Launch, check_ranks
from jano_dist.cli.tune_bar import TuneBar
from jano_dist.config import Config, load_config, parse_overrides, preset_names
from jano_dist.errors import Interrupted, RunError, UserError
from jano_dist.gang import Place, Progress, find_place, is_supervised
from jano_dist.libraries import quiet_libraries
from jano_dist.target import hold, write_whole

if TYPE_CHECKING:  # it imports torch
    from jano_dist.bench.tune_runs import TuneRuns

_PATIENCE = 20.0  # seconds for the ranks of a call that was killed to be gone
_GO_ON = "the same command goes on"


def tune(
    context: typer.Context,
    prompts: Annotated[
        Path,
        typer.Option(
            parser=given_path, metavar="FILE", help="A prompt on each line (.txt), or .jsonl as for batch."
        ),
    ],
    out: Annotated[
        Path, typer.Option(parser=given_path, metavar="FOLDER", help="For preset.yaml and what was measured.")
    ],
    psnr: Annotated[float | None, typer.Option(help="The target: the fastest setting of so many dB.")] = None,
    speedup: Annotated[
        float | None, typer.Option(help="The target: the best setting that is so many times as fast.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Time of all calls together; without it: until nothing is left to try."),
    ] = None,
    by: Annotated[Speed, typer.Option(help="What counts as speed: seconds, or counted FLOPs.")] = "wall",
    config: Annotated[
        str | None, typer.Option(help=f"{CONFIG_HELP} Without one: that of the model, or {DEFAULT_CONFIG}.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model name, diffusers folder or hub name.")] = None,
    policy: PolicyOption = None,
    preset: PresetOption = None,
    set_: SetOption = None,
    seed: Annotated[int | None, typer.Option(help="Seed of lines that have none.")] = None,
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
    """Find settings that reach a PSNR or a speed-up. What is measured stays: the same command goes on."""
    call, place = context.ensure_object(Call), find_place()
    target = _target(psnr, speedup, by, minutes)
    settings, jobs, rows = _asked_for(prompts, context.params)
    check_ranks(nproc, settings, place, launcher)
    every = candidates(settings, rows)
    facts = facts_of(settings.model_dump(mode="json"), jobs, every)
    folder = TuneFolder(out)
    if place.is_coordinator:
        folder.begin(facts)  # says what is wrong with it before ranks are started
    with _resumable(folder) if not is_supervised() and place.is_coordinator else nullcontext():
        if nproc is not None and (nproc > 1 or launcher == "ray"):
            launch_bench(Launch(launcher, nproc, address, wait), call.arguments, settings.runtime, out)
        else:
            seconds = None if minutes is None else 60 * minutes
            ranks = _Ranks(settings, jobs, every, facts, folder, target, seconds, place, call)
            ranks.run()
    if place.is_coordinator and not is_supervised():
        _end(folder, target, place)


def _end(folder: TuneFolder, target: Target, place: Place) -> None:
    """Exit code 1 where the target was not reached; the best that was found is written all the same."""
    result = folder.read().result
    if not result.get("best"):
        problem = "the time was up before anything was compared: give more --minutes"
    elif not result["reached"]:
        problem = (
            f"{asked(target)} was not reached: the best that was found, {result['best']}, is in "
            f"{folder.path / 'preset.yaml'}"
        )
    else:
        return
    if place.world == 1:
        raise RunError(problem)
    print(f"jano-dist: {problem}", file=sys.stderr)  # torchrun's ranks have nothing to tell each other
    raise typer.Exit(1)


class _Ranks:
    """This rank's part, from the first import to the written preset."""

    def __init__(
        self,
        config: Config,
        jobs: Sequence[tuple[str, int]],
        every: Sequence[Candidate],
        facts: Mapping[str, Any],
        folder: TuneFolder,
        target: Target,
        seconds: float | None,
        place: Place,
        call: Call,
    ) -> None:
        self._config, self._jobs, self._every, self._facts = config, jobs, every, facts
        self._folder, self._target, self._seconds = folder, target, seconds
        self._place, self._call = place, call

    def run(self) -> None:
        holding = hold(self._folder.path, patience=_PATIENCE) if self._place.is_coordinator else nullcontext()
        with holding, TuneBar(log(), self._jobs) as bar:
            quiet_libraries()  # before they are imported
            with importing():
                from jano_dist.bench.tune_runs import TuneRuns
                from jano_dist.observe import NullObserver
                from jano_dist.runtime import join

            tuning_prompts = divide(len(self._jobs))[0]
            with join(self._config.runtime) as store:
                observer = bar if self._place.is_coordinator else NullObserver()
                runner = TuneRuns(
                    self._config,
                    self._jobs,
                    tuning_prompts[: rungs(len(tuning_prompts))[0]],
                    self._folder.path / "full",
                    observer=Progress(observer, store, self._place),
                )
                state = self._state(runner.where()) if self._place.is_coordinator else None
                runner.warm_up()
                tuning = Tuning(
                    runner,
                    self._every,
                    prompts=len(self._jobs),
                    target=self._target,
                    board=bar,
                    folder=self._folder,
                    state=state,
                    seconds=self._seconds,
                    began=self._call.started,
                )
                tuning.run()
                if state is not None:
                    self._write(tuning, state, bar)
                self._show(runner, tuning, bar)

    def _show(self, runner: "TuneRuns", tuning: Tuning, bar: TuneBar) -> None:
        """The page, where something was chosen and there is time for it."""
        chosen, prompts = tuning.shown([seed for _, seed in self._jobs])
        if chosen:
            page = self._folder.path / "page"
            runner.show(chosen, prompts, page, self._call.arguments, bar)
            if self._place.is_coordinator:
                tuning.save()
                bar.say(f"look at {page / 'index.html'}")

    def _state(self, where: dict[str, Any]) -> TuneState:
        state = self._folder.begin(self._facts)
        for name, value in where.items():
            if state.where and state.where[name] != value:
                raise UserError(
                    f"--out {self._folder.path} was measured with another {name} ({state.where[name]}, now "
                    f"{value}), whose figures are not to be mixed: give a new folder, or tune as before"
                )
        state.where, state.calls = where, state.calls + 1
        return state

    def _write(self, tuning: Tuning, state: TuneState, bar: TuneBar) -> None:
        path = self._folder.path
        state.result = {} if not state.predictions else verdict(
            tuning.search, state, out_of_time=tuning.out_of_time
        )  # fmt: skip
        tuning.save()
        if not state.result.get("best"):
            return
        command = f"jano-dist {shlex.join(self._call.arguments)}"
        text = preset_text(self._config, tuning.search, state, state.result, command=command)
        write_whole(path / "preset.yaml", text)
        for line in sentences(state.result, state, tuning.search):
            bar.say(line)
        bar.say(f"preset: {path / 'preset.yaml'}; all that was measured: {path / 'tune.json'}")


def _target(psnr: float | None, speedup: float | None, by: Speed, minutes: float | None) -> Target:
    if (psnr is None) == (speedup is None):
        what = "neither was given" if psnr is None else "both were given"
        raise UserError(f"tune needs either --psnr or --speedup as its target, and {what}: give one of them")
    if psnr is not None and not 0 < psnr < CEILING:
        raise UserError(
            f"--psnr {psnr:g} is no PSNR to aim at: give dB between 0 and {CEILING:g}, such as 40"
        )
    if speedup is not None and not (1 < speedup < math.inf):
        raise UserError(f"--speedup {speedup:g} is none: give a number above 1, such as 2")
    if minutes is not None and not (0 < minutes < math.inf):
        raise UserError(f"--minutes {minutes:g} is no time: give a number above 0")
    return Target(psnr, speedup, by)


def _asked_for(prompts: Path, params: Mapping[str, Any]) -> tuple[Config, list[tuple[str, int]], list[Case]]:
    """The config, each prompt with its seed, and the config's presets."""
    pairs = config_overrides(params["set_"], named_keys(params))
    name, overrides = config_name(params["config"], pairs), parse_overrides(pairs)

    def configure(changes: Mapping[str, Any]) -> Config:
        if changes:
            raise UserError(
                f"tune finds one preset for all prompts, so a line cannot set {', '.join(changes)}: "
                "leave it out"
            )
        return load_config(name, preset=params["preset"], policy=params["policy"], overrides=overrides)

    plan, _ = read_plan(prompts, configure, skip_bad=False)
    (settings,) = plan.configs
    for job in plan.jobs:
        if job.negative_prompt != settings.sampling.negative_prompt:
            raise UserError(
                f"{prompts}, line {job.line}: tune uses one negative prompt for all: leave it out, and use "
                "--set sampling.negative_prompt=..."
            )
    others = {key: value for key, value in overrides.items() if not key.startswith("policy.")}
    rows = [
        preset_case(f"preset {row}", settings, load_config(name, preset=row, policy="jano", overrides=others))
        for row in preset_names(name)
    ]
    return settings, [(job.prompt, job.seed) for job in plan.jobs], rows


@contextmanager
def _resumable(folder: TuneFolder) -> Iterator[None]:
    """However it ends early: what is measured is measured."""
    try:
        yield
    except RunError as error:
        if str(error):
            raise type(error)(f"{error}; {_state(folder)}") from error
        raise
    except KeyboardInterrupt as error:
        raise Interrupted(f"interrupted: {_state(folder)}") from error


def _state(folder: TuneFolder) -> str:
    return f"what was measured is in {folder.path / 'tune.json'}: {_GO_ON}"
