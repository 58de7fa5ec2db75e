"""What a tuning has found, in numbers and in sentences, and the preset it becomes. No torch."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import yaml

from jano_dist.bench.cases import Case
from jano_dist.bench.search import Search, Standing, Target
from jano_dist.bench.space import FEWER
from jano_dist.bench.tune_state import TuneState
from jano_dist.config import Config
from jano_dist.errors import count

WITHIN = 1.0  # dB or, of a speed-up, its tenth: how far held-out prompts may be below the target
_WIDTH = 100  # signs of a comment


def verdict(search: Search, state: TuneState, *, out_of_time: bool) -> dict[str, Any]:
    """What `tune.json` has as `result`.

    Returns:
        `{best, reached, held_out_reached, best_control, control_is_best, out_of_time, target, standings}`;
        `best` is None where nothing was measured, `held_out_reached` where nothing was held out.
    """
    log = state.log()
    best, control = search.best(log), search.best_control(log)
    names = [name for name in search.candidates if search.standing(log, name)]
    rows = {name: _rows(search, state, name) for name in names}
    return {
        "best": best,
        "reached": best is not None and search.reaches(log, best),
        "held_out_reached": _held_reaches(search, state, best) if best else None,
        "best_control": control,
        "control_is_best": best is not None and search.candidates[best].control,
        "out_of_time": out_of_time,
        "target": asdict(search.target),
        "standings": rows,
    }


def sentences(result: dict[str, Any], state: TuneState, search: Search) -> list[str]:
    """The result for a reader, a few lines."""
    best, target = result["best"], search.target
    log = state.log()
    own = search.standing(log, best) if best else None
    if best is None or own is None:
        return ["nothing was measured"]
    lines = [f"{best}: {_figures(own)}, on {count(own.prompts, 'prompt')}"]
    if not result["reached"]:
        lines.insert(0, f"{asked(target)} was not reached: this is what comes nearest")
    lines.append(_about_held_out(result, search, state, best))
    lines.append(_about_controls(result, search, state))
    if result["out_of_time"]:
        lines.append("The time was up before the search had ended: with more --minutes it goes on.")
    return lines


def asked(target: Target) -> str:
    """The target in words."""
    if target.psnr is not None:
        return f"a PSNR of {target.psnr:g} dB"
    how = "by the clock" if target.by == "wall" else "by counted work"
    return f"a speed-up of {target.speedup:g} {how}"


def preset_text(
    base: Config, search: Search, state: TuneState, result: dict[str, Any], *, command: str
) -> str:
    """The text of `preset.yaml`: a whole config, and what was measured in comments."""
    best = search.candidates[result["best"]]
    config = Case(best.name, best.changes).config(base)
    where, mesh = state.where, state.where.get("mesh", {})
    video, models = config.video, ", ".join(f"{name} {text}" for name, text in where["versions"].items())
    head = [
        f"Found by `{command}`",
        f"on {datetime.now(UTC):%Y-%m-%d} for {asked(search.target)}.",
        f"Measured: {config.model.name}, {video.width}x{video.height}, {count(video.frames, 'frame')}, "
        f"{base.sampling.steps} steps in the full run; {where['device']}, "
        f"{count(int(mesh.get('world', 1)), 'rank')} (cfg {mesh.get('cfg', 1)} x kv {mesh.get('kv', 1)} x "
        f"ulysses {mesh.get('ulysses', 1)}); {models}.",
        *sentences(result, state, search),
        "PSNR is of the frames against the full run of the same prompt and seed; a speed-up is the full "
        "run's seconds (encoding, denoising, decoding) over this one's. All measurements are in tune.json.",
    ]
    comment = "".join(f"# {line}\n" for text in head for line in _wrapped(text))
    content = config.model_dump(mode="json", exclude={"preset"})
    return comment + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=_WIDTH)


def _rows(search: Search, state: TuneState, name: str) -> dict[str, Any]:
    log = state.log()
    own, held = search.standing(log, name), search.standing(log, name, held=True)
    return {"tuning": own and asdict(own), "held_out": held and asdict(held)}


def _held_reaches(search: Search, state: TuneState, best: str) -> bool | None:
    """Whether prompts held out are at most `WITHIN` below the target, in the mean."""
    held, target = search.standing(state.log(), best, held=True), search.target
    if held is None:
        return None
    if target.psnr is not None:
        return held.mean >= target.psnr - WITHIN
    return search.speed(held) >= (target.speedup or 0) * (1 - WITHIN / 10)


def _figures(standing: Standing) -> str:
    return (
        f"{standing.wall:.2f}x as fast as the full run by the clock, {standing.work:.2f}x by counted work; "
        f"PSNR {standing.mean:.1f} dB in the mean, {standing.median:.1f} in the median, {standing.worst:.1f} "
        "at worst"
    )


def _about_held_out(result: dict[str, Any], search: Search, state: TuneState, best: str) -> str:
    if not search.held:
        few = count(len(search.tuning), "prompt")
        return f"Of {few} none was held out, so other prompts may do worse: give 4 or more to know."
    held = search.standing(state.log(), best, held=True)
    if held is None:
        return "No time was left for the prompts held out, so others may do worse."
    fits = "within" if result["held_out_reached"] else "not within"
    room = f"{WITHIN:g} dB" if search.target.psnr is not None else f"{WITHIN / 10:.0%}"
    some = "" if held.prompts == len(search.held) else f" of {len(search.held)}"
    return (
        f"On {held.prompts}{some} held-out {'prompt' if held.prompts == 1 else 'prompts'}: {_figures(held)}: "
        f"{fits} {room} of the target."
    )


def _about_controls(result: dict[str, Any], search: Search, state: TuneState) -> str:
    best, control = search.candidates[result["best"]], result["best_control"]
    if best.control:
        plain = "Plain fewer steps are" if best.family == FEWER else "Plainly skipping every n-th step is"
        return f"{plain} best here: no policy that was tried does better."
    if control is None:
        return "No control was measured."
    standing = search.standing(state.log(), control)
    reach = "" if search.reaches(state.log(), control) else " (misses the target)"
    return f"The best plain control is {control}{reach}: {_figures(standing)}." if standing else ""


def _wrapped(text: str) -> Sequence[str]:
    import textwrap

    return textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False) or [""]
