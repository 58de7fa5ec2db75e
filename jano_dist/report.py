"""Pictures of a run: where its complexity map put the work, and what each step cost."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator
from PIL import Image

# Okabe and Ito's colours, told apart by colour-blind readers too.
BLUE, YELLOW, VERMILLION, GREEN = "#0072B2", "#F0E442", "#D55E00", "#009E73"
LEVELS = {1: ("static", BLUE), 2: ("moderate", YELLOW), 3: ("active", VERMILLION)}
OVERLAY_ALPHA = 0.45

# A step that computes only the active tokens has the colour of the active level, and so on.
KINDS = {
    "full": "#404040",
    "refresh": BLUE,
    "moderate": YELLOW,
    "active": VERMILLION,
    "chosen": VERMILLION,
    "skip": "#DDDDDD",
    "blocks": GREEN,
}

INK, FAINT = "#222222", "#777777"
DPI = 150
COLUMNS = 5  # at most, in the complexity picture


def complexity_picture(
    path: Path,
    frames: npt.NDArray[np.uint8],
    levels: npt.NDArray[np.uint8],
    shares: Mapping[str, float],
) -> None:
    """Draw the complexity map over the video or image it belongs to, as PNG.

    Args:
        path: where to write the picture.
        frames: the decoded video, `uint8 [T, H, W, 3]`.
        levels: one level per token, `uint8 [Tt, Th, Tw]`: STATIC=1, MODERATE=2, ACTIVE=3.
        shares: share of the tokens per level name ("static", ...), 0 to 1; a missing one is 0.

    Raises:
        ValueError: wrong shapes, or a level that is none of the three.
    """
    _check_map(frames, levels)
    picks = np.unique(np.linspace(0, len(levels) - 1, COLUMNS).round().astype(int))
    figure, axes = _picture_grid(len(picks), frames.shape[1] / frames.shape[2])
    for column, j in enumerate(picks):
        first, last = covered_frames(int(j), len(levels), len(frames))
        middle = (first + last) // 2
        axes[0, column].imshow(frames[middle])
        if len(frames) > 1:
            axes[0, column].set_title(f"frame {middle + 1} of {len(frames)}", fontsize=8, color=FAINT, pad=4)
        axes[1, column].imshow(tint(frames[middle], levels[j]))
        axes[1, column].add_collection(_borders(levels[j], frames.shape[1], frames.shape[2]))
    axes[0, 0].set_ylabel("image" if len(frames) == 1 else "video", fontsize=8, color=FAINT)
    axes[1, 0].set_ylabel("complexity map", fontsize=8, color=FAINT)
    handles = [
        Patch(facecolor=colour, edgecolor=INK, linewidth=0.5, label=f"{name} {shares.get(name, 0.0):.0%}")
        for name, colour in LEVELS.values()
    ]
    figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False, fontsize=9, labelcolor=INK)
    figure.savefig(path, format="png")


def _picture_grid(columns: int, aspect: float) -> tuple[Figure, npt.NDArray[Any]]:
    """A figure and its axes `[2, columns]` for pictures of `aspect` = height / width, nothing stretched."""
    cell_w = 2.6 if aspect <= 1 else 2.0  # all lengths in inches
    cell_h, gap, top, bottom, side = cell_w * aspect, 0.06, 0.3, 0.45, 0.3
    pictures_w = columns * (cell_w + gap) - gap
    width = max(side + pictures_w + gap, 4.2)  # 4.2: the legend needs that much
    height = bottom + 2 * cell_h + gap + top
    left = side + (width - side - pictures_w - gap) / 2
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    axes = figure.subplots(2, columns, squeeze=False, gridspec_kw={
        "left": left / width, "right": (left + pictures_w) / width, "wspace": gap / cell_w,
        "bottom": bottom / height, "top": 1 - top / height, "hspace": gap / cell_h,
    })  # fmt: skip
    for cell in axes.flat:
        cell.set(xticks=[], yticks=[])
        cell.spines[:].set_visible(False)
    return figure, axes


def covered_frames(j: int, latent_frames: int, frames: int) -> tuple[int, int]:
    """First and last decoded frame of latent frame `j`, both included, counted from 0.

    A causal video VAE decodes the first latent frame to one frame and each later one to
    r = (frames - 1) / (latent_frames - 1): latent frame j covers 1 + (j - 1) r .. j r.
    """
    if j == 0:
        return 0, 0
    last = j * (frames - 1) // (latent_frames - 1)
    return min(1 + (j - 1) * (frames - 1) // (latent_frames - 1), last), last


def tint(frame: npt.NDArray[np.uint8], levels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """`frame` `[H, W, 3]` in grey, under the translucent colours of `levels` `[Th, Tw]` (nearest)."""
    height, width = frame.shape[:2]
    rows = np.arange(height) * levels.shape[0] // height  # [H], the token row of each pixel row
    columns = np.arange(width) * levels.shape[1] // width  # [W]
    palette = np.zeros((max(LEVELS) + 1, 3))
    for level, (_, colour) in LEVELS.items():
        palette[level] = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    colours = palette[levels[rows[:, None], columns]]  # [H, W, 3]
    # In grey (BT.601 luma), because over a blue sky a yellow tint would read as a level of its own.
    grey = (frame @ np.array([0.299, 0.587, 0.114]))[..., None]  # [H, W, 1]
    blend: npt.NDArray[np.float64] = (1 - OVERLAY_ALPHA) * grey + OVERLAY_ALPHA * colours
    return blend.round().astype(np.uint8)


def level_strip(path: Path, levels: npt.NDArray[np.uint8]) -> None:
    """Write a complexity map [Tt, Th, Tw] as PNG to lay over a video: a pixel per token, the latent frames
    one below the other, in the colours of the levels, translucent."""
    palette = np.zeros((max(LEVELS) + 1, 4), np.uint8)
    for level, (_, colour) in LEVELS.items():
        palette[level] = [*bytes.fromhex(colour[1:]), round(255 * OVERLAY_ALPHA)]
    Image.fromarray(palette[levels.reshape(-1, levels.shape[2])]).save(path)


def _borders(levels: npt.NDArray[np.uint8], height: int, width: int) -> LineCollection:
    """White lines wherever two neighbouring tokens of `levels` `[Th, Tw]` differ."""
    rows, columns = levels.shape
    dy, dx = height / rows, width / columns
    down, right = np.diff(levels.astype(int), axis=0), np.diff(levels.astype(int), axis=1)
    lines = [[(x * dx, (y + 1) * dy), ((x + 1) * dx, (y + 1) * dy)] for y, x in np.argwhere(down)]
    lines += [[((x + 1) * dx, y * dy), ((x + 1) * dx, (y + 1) * dy)] for y, x in np.argwhere(right)]
    # imshow puts pixel centres on whole numbers, so the picture starts at -0.5.
    shifted = [[(x - 0.5, y - 0.5) for x, y in line] for line in lines]
    return LineCollection(shifted, colors="white", linewidths=0.9, capstyle="projecting")


def _check_map(frames: npt.NDArray[np.uint8], levels: npt.NDArray[np.uint8]) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise ValueError(f"frames must be uint8 [T, H, W, 3], not {frames.dtype} {list(frames.shape)}")
    if levels.ndim != 3 or not levels.size:
        raise ValueError(f"levels must be [Tt, Th, Tw], not {list(levels.shape)}")
    unknown = sorted(set(np.unique(levels).tolist()) - set(LEVELS))
    if unknown:
        raise ValueError(f"levels must be 1, 2 or 3, found {unknown}")


def timeline_picture(path: Path, steps: Sequence[Mapping[str, Any]]) -> None:
    """Draw tokens and seconds (compute, and communication on top) of every step, coloured by kind, as PNG.

    Args:
        path: where to write the picture.
        steps: per step a mapping with `index` (int), `kind` (full, refresh, moderate, active,
            skip or blocks), `tokens` (int, computed), `seconds` (float), `comm_seconds` (float, the part of
            them spent in collectives, or None) and `comm_bytes` (int).

    Raises:
        ValueError: no steps, or an unknown kind.
    """
    if not steps:
        raise ValueError("a timeline needs at least one step")
    unknown = sorted({step["kind"] for step in steps} - set(KINDS))
    if unknown:
        raise ValueError(f"unknown step kinds {unknown}; known are {', '.join(KINDS)}")
    figure = Figure(figsize=(8.4, 4.2), dpi=DPI, facecolor="white", layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    _bars(upper, steps, "tokens")
    _bars(lower, steps, "seconds")
    upper.set_ylabel("tokens computed", fontsize=9, color=INK)
    upper.yaxis.set_major_formatter(EngFormatter(sep=""))
    lower.set_ylabel("seconds", fontsize=9, color=INK)
    lower.set_xlabel("step", fontsize=9, color=INK)
    lower.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
    upper.set_title(_totals(steps), fontsize=10, color=INK, loc="left", pad=8)
    counts = {kind: sum(step["kind"] == kind for step in steps) for kind in KINDS}
    handles = [Patch(color=KINDS[kind], label=f"{kind} ({n})") for kind, n in counts.items() if n]
    handles += _communication(lower, steps)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    figure.savefig(path, format="png")


def _bars(axes: Axes, steps: Sequence[Mapping[str, Any]], value: str) -> None:
    index = [step["index"] for step in steps]
    for step in steps:
        if step["kind"] == "skip":  # its bar has no height, so the step is marked behind it
            axes.axvspan(step["index"] - 0.5, step["index"] + 0.5, color=KINDS["skip"], alpha=0.6, lw=0)
    axes.bar(index, [step[value] for step in steps], width=0.8, color=[KINDS[step["kind"]] for step in steps])
    axes.set_xlim(min(index) - 0.7, max(index) + 0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=FAINT)


def _communication(axes: Axes, steps: Sequence[Mapping[str, Any]]) -> list[Patch]:
    """White tops on the bars of seconds, and their line of the legend; nothing where nobody communicated, or
    it was not timed."""
    top = [step["comm_seconds"] or 0.0 for step in steps]
    if not any(top):
        return []
    bottom = [step["seconds"] - part for step, part in zip(steps, top, strict=True)]
    look: dict[str, Any] = {"facecolor": "white", "edgecolor": INK, "linewidth": 0.5}
    axes.bar([step["index"] for step in steps], top, bottom=bottom, width=0.8, **look)
    share = math.fsum(top) / math.fsum(step["seconds"] for step in steps)
    return [Patch(label=f"communication ({share:.0%} of the time)", **look)]


def _totals(steps: Sequence[Mapping[str, Any]]) -> str:
    """One line: steps, tokens computed relative to the largest step in all, time, communication."""
    tokens = [step["tokens"] for step in steps]
    if max(tokens) == 0:
        computed = "no tokens computed"
    else:
        computed = f"{sum(tokens) / (max(tokens) * len(steps)):.0%} of the tokens computed"
    seconds = math.fsum(step["seconds"] for step in steps)
    sent = sum(step["comm_bytes"] for step in steps)
    moved = EngFormatter(unit="B", places=1)(sent) + " communicated" if sent else "no communication"
    count = "1 step" if len(steps) == 1 else f"{len(steps)} steps"
    return f"{count}  ·  {computed}  ·  {seconds:,.1f} s  ·  {moved}"
