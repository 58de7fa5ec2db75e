"""The table and the plot of `jano-dist bench recognition`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from jano_dist.report import DPI, FAINT, INK

_PUBLISHED = 0.73  # median accuracy that the paper claims (arXiv 2603.00519), on its own models


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """A table for each regime and warm-up."""
    for guidance, shift, warmup in _settings(rows):
        title = f"guidance {guidance:g}, shift {_shift(shift)}, warm-up {warmup}"
        table = Table("score", "rank correlation", "accuracy", "dB, mean", "worst", title=title)
        for row in _of(rows, guidance, shift, warmup):
            table.add_row(
                row["score"],
                f"{row['rank_correlation']:.2f}",
                f"{row['accuracy']:.2f}",
                *("-" if row[key] is None else f"{row[key]:.1f}" for key in ("psnr_mean", "psnr_worst")),
            )
        console.print(table)
    console.print(
        f"accuracy: the median over prompts of the share of blocks whose level is right; {_PUBLISHED} is "
        "published for other models (arXiv 2603.00519)",
        soft_wrap=True,
    )


def plot(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """For each score a point per regime and warm-up: what it foretells, and what came of it."""
    names = list(dict.fromkeys(row["score"] for row in rows))
    outcome = any(row["psnr_mean"] is not None for row in rows)
    keys = [("rank_correlation", "rank correlation"), ("accuracy", "accuracy of three levels")]
    keys += [("psnr_over_random", "dB above a random map")] if outcome else []
    figure = Figure(
        figsize=(4.0 * len(keys) + 1, 0.32 * len(names) + 1.6),
        dpi=DPI,
        facecolor="white",
        layout="constrained",
    )
    panels = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    against = [{**row, "psnr_over_random": _over_random(row, rows)} for row in rows]
    for axes, (key, label) in zip(panels, keys, strict=True):
        for place, name in enumerate(names):
            values = [row[key] for row in against if row["score"] == name and row[key] is not None]
            axes.plot(values, [place] * len(values), "o", color=FAINT, markersize=4, alpha=0.6)
            if values:
                mean = sum(values) / len(values)
                axes.plot([mean], [place], "|", color=INK, markersize=14, markeredgewidth=2)
        axes.set_xlabel(label, fontsize=9, color=INK)
        axes.tick_params(labelsize=8, colors=INK)
        axes.grid(axis="x", color="#E5E5E5", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    figure.savefig(path, format="png")


def _over_random(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> float | None:
    same = _of(rows, row["guidance"], row["shift"], row["warmup"])
    control = next((other["psnr_mean"] for other in same if other["score"] == "random map"), None)
    return None if control is None or row["psnr_mean"] is None else row["psnr_mean"] - control


def _settings(rows: Sequence[dict[str, Any]]) -> list[tuple[Any, Any, int]]:
    return list(dict.fromkeys((row["guidance"], row["shift"], row["warmup"]) for row in rows))


def _of(rows: Sequence[dict[str, Any]], guidance: Any, shift: Any, warmup: int) -> list[dict[str, Any]]:
    keys = ("guidance", "shift", "warmup")
    return [row for row in rows if tuple(row[key] for key in keys) == (guidance, shift, warmup)]


def _shift(shift: float | None) -> str:
    return "of the model" if shift is None else f"{shift:g}"
