"""One page on which a person can look at a comparison: table, plot, and the videos side by side."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from jano_dist.bench.cases import FULL
from jano_dist.bench.outcome import IDENTICAL
from jano_dist.bench.report import Comparison, Row
from jano_dist.errors import count
from jano_dist.report import KINDS, LEVELS

_TEMPLATE = Path(__file__).with_name("page.html")
_OTHER_KIND = "#56B4E9"  # a step whose kind has no colour of its own

# Column -> (heading, what it says, format).
_COLUMNS: dict[str, tuple[str, str, str]] = {
    "work": ("work", "counted FLOPs, share of the full run's", "{:.0%}"),
    "speedup_flops": ("FLOPs", "speed-up by counted FLOPs", "{:.2f}x"),
    "speedup": ("denoising", "speed-up in the seconds of denoising", "{:.2f}x"),
    "speedup_whole": ("whole", "speed-up in the seconds of encoding, denoising and decoding", "{:.2f}x"),
    "psnr": ("PSNR", "dB against the full run, on frames before they are encoded", "{:.1f}"),
    "ssim": ("SSIM", "structural similarity, 1 is equal", "{:.4f}"),
    "flip": ("FLIP", "difference seen on alternating, 0 is equal", "{:.4f}"),
    "lpips": ("LPIPS", "learned perceptual distance, 0 is equal", "{:.4f}"),
    "flicker_change": ("flicker", "VBench's temporal flickering, minus the full run's", "{:+.5f}"),
}
_ENDS = ("mean", "median", "worst")


def page(comparison: Comparison) -> str:
    """The page's text; pictures and videos are named relative to it."""
    plan = comparison.plan
    shown = [name for name in _COLUMNS if any(case[name] for case in comparison.cases)]
    parts = {
        "TITLE": escape(f"{plan.config.model.name}: quality and speed"),
        "ABOUT": _about(comparison),
        "TABLE": _table(comparison, shown),
        "CHOICE": "".join(_choice(number, case) for number, case in enumerate(comparison.cases)),
        "LEGEND": _legend(comparison),
        "VIDEOS": "".join(
            _pair(comparison, number, prompt, seed) for number, (prompt, seed) in enumerate(plan.pairs)
        ),
        "FPS": str(plan.config.video.fps),
        "FRAMES": str(plan.config.video.frames),
    }
    text = _TEMPLATE.read_text(encoding="utf-8")
    for name, content in parts.items():
        text = text.replace(f"<!--{name}-->", content)
    return text


def _about(comparison: Comparison) -> str:
    plan, video = comparison.plan, comparison.plan.config.video
    seconds = comparison.full["seconds"]
    sampling = plan.config.sampling
    shift = "the model's own shift" if sampling.shift is None else f"shift {sampling.shift:g}"
    lines = [
        f"{count(len(plan.prompts), 'prompt')} x {count(len(plan.seeds), 'seed')}, "
        f"{count(len(comparison.cases), 'case')}; "
        f"{video.width}x{video.height}, {count(video.frames, 'frame')}, {sampling.steps} steps, guidance "
        f"{sampling.guidance:g}, {shift}",
        f"a full run: {seconds['denoise']:.1f} s of denoising, {seconds['whole']:.1f} s with encoding and "
        "decoding (mean)",
    ]
    return "".join(f"<p>{escape(line)}</p>" for line in lines) + "".join(map(_measured, comparison.ran))


def _measured(ran: Mapping[str, Any]) -> str:
    """When and where; the command, which may be long, where it is asked for."""
    versions = ", ".join(f"{name} {version}" for name, version in ran["versions"].items())
    ranks = f"{count(ran['ranks'], 'rank')} of {count(ran['threads'], 'thread')}"
    where = f"{ran['device']} ({ran['cpu']}, {count(ran['cores'], 'core')}), {ranks}; {versions}"
    summary = escape(f"measured {ran['began']} on {where}")
    return f"<details><summary>{summary}</summary><p>$ {escape(ran['command'])}</p></details>"


def _table(comparison: Comparison, shown: Sequence[str]) -> str:
    heads = "".join(f'<th title="{escape(_COLUMNS[name][1])}">{_COLUMNS[name][0]}</th>' for name in shown)
    rows = []
    for case in comparison.cases:
        changes = json.dumps({**case["changes"], **{k: case[k] for k in ("like", "rearrange") if case[k]}})
        cells = "".join(f"<td>{_cell(name, case[name])}</td>" for name in shown)
        rows.append(f'<tr><th title="{escape(changes)}">{escape(case["name"])}</th>{cells}</tr>')
    return f"<thead><tr><th>case</th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>"


def _cell(name: str, figure: Mapping[str, float] | None) -> str:
    """Mean, median and worst; the page shows one of them at a time."""
    if figure is None:
        return "&ndash;"
    form = _COLUMNS[name][2]
    cells = [
        f'<span class="{end}" data-value="{figure.get(end, "")}">'
        f"{form.format(figure[end]) if end in figure else IDENTICAL}</span>"
        for end in _ENDS
    ]
    return "".join(cells)


def _choice(number: int, case: Mapping[str, Any]) -> str:
    name = escape(case["name"])
    return f'<label><input type="checkbox" class="case" value="{number}" checked>{name}</label>'


def _legend(comparison: Comparison) -> str:
    kinds = {kind for row in comparison.rows.values() for kind in row["kinds"]}
    known = [*(kind for kind in KINDS if kind in kinds), *sorted(kinds - set(KINDS))]
    steps = "".join(_swatch(KINDS.get(kind, _OTHER_KIND), kind) for kind in known)
    maps = "".join(_swatch(colour, name) for name, colour in LEVELS.values())
    return f"<span>steps: {steps}</span><span>map: {maps}</span>"


def _swatch(colour: str, name: str) -> str:
    return f'<i style="background:{colour}"></i>{escape(name)} '


def _pair(comparison: Comparison, number: int, prompt: str, seed: int) -> str:
    """The videos of one prompt and seed."""
    names = [FULL, *(case["name"] for case in comparison.cases)]
    rows = [comparison.rows[name, prompt, seed] for name in names]
    videos = "".join(_video(row, place - 1) for place, row in enumerate(rows))
    return (
        f'<section id="p{number}"><h2>{escape(prompt)} <small>seed {seed}</small></h2>'
        f'<div class="videos">{videos}</div></section>'
    )


def _video(row: Row, case: int) -> str:
    """A video with its figures; `case` is -1 for the full run."""
    psnr, named = row["quality"]["psnr"], escape(row["case"])
    source, strip = escape(row["video"]), escape(row["map"] or "")
    if case < 0:
        words, value = f"{row['seconds']['denoise']:.1f} s", ""
    else:
        fast = row["full_seconds"]
        times = [f"{fast['denoise'] / row['seconds']['denoise']:.2f}x"] if fast else []
        alike = psnr if psnr == IDENTICAL else f"{psnr:.1f} dB"
        words = ", ".join([alike, *times, f"{row['work']:.0%} work"])
        value = "" if psnr == IDENTICAL else f"{psnr}"
    if row["video"].endswith(".png"):
        shown = f'<img data-src="{source}" alt="{named}">'
    else:
        shown = f'<video data-src="{source}" muted playsinline preload="none"></video>'
    return (
        f'<figure data-case="{case}" data-psnr="{value}"><div class="frame">{shown}'
        f'<canvas data-map="{strip}"></canvas></div>{_steps(row)}'
        f"<figcaption><b>{named}</b><br>{words}</figcaption></figure>"
    )


def _steps(row: Row) -> str:
    """A bar for each step, as high as the share of the tokens it computed."""
    bars = []
    for step, (kind, share) in enumerate(zip(row["kinds"], row["tokens"], strict=True)):
        height = max(1.0, 16 * share)
        colour = KINDS.get(kind, _OTHER_KIND)
        bars.append(f'<rect x="{step}" y="{16 - height:g}" width=".9" height="{height:g}" fill="{colour}"/>')
    width = len(row["kinds"])
    counts = {kind: row["kinds"].count(kind) for kind in dict.fromkeys(row["kinds"])}
    said = ", ".join(f"{number} {kind}" for kind, number in counts.items())
    return (
        f'<svg viewBox="0 0 {width} 16" preserveAspectRatio="none"><title>{escape(said)}</title>'
        f"{''.join(bars)}</svg>"
    )
