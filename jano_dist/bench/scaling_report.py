"""The table and the plot of `jano-dist bench scaling`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator, ScalarFormatter
from rich.console import Console
from rich.table import Table

from jano_dist.errors import count
from jano_dist.report import BLUE, DPI, INK, VERMILLION

_COLOURS = (INK, VERMILLION, BLUE, "#009E73", "#CC79A7", "#E69F00")  # Okabe and Ito's

_WIDE = 150  # characters


def show(summary: Mapping[str, Any], console: Console) -> None:
    """One table, and what is to be known beside it."""
    names = ("ranks", "mesh", "side", "seconds", "gain", "retention", "efficiency", "sent", "imbalance")
    table = Table(*names)
    for row in summary["rows"]:
        table.add_row(
            str(row["world"]),
            row["mesh"],
            row["side"],
            _range(row["seconds"]),
            _range(row["gain"]),
            _range(row["retention"]),
            _range(row["efficiency"]),
            "-" if row["peer"] else f"{row['bytes_sent'] / 1e6:,.1f} MB",
            "-" if row["peer"] else f"{row['imbalance']:.3f}",
        )
    if not console.is_terminal:  # a log is as wide as its longest line
        console.width = _WIDE
    console.print(table)
    for sentence in notes(summary):
        console.print(sentence, soft_wrap=True)


def notes(summary: Mapping[str, Any]) -> list[str]:
    """Sentences without which the table would mislead."""
    said = [
        "mesh: cfg x kv x ulysses; figures: median (lowest to highest) over rounds; gain over `full` on the "
        f"same ranks and mesh; retention and efficiency against {count(summary['fewest_ranks'], 'rank')}"
    ]
    for row in summary["rows"]:
        for peer, ratio in row["over_peers"].items():
            if not row["peer"]:
                name = f"{count(row['world'], 'rank')} ({row['mesh']}), {row['side']}"
                said.append(f"{name}: {_range(ratio)} times as fast as {peer}")
    said += [
        f"{count(each['ranks'], 'rank')}: {each['side']} not run: {each['reason']}"
        for each in summary["not_run"]
    ]
    if summary["crowded_ranks"]:
        listed = ", ".join(map(str, summary["crowded_ranks"]))
        said.append(
            f"with {listed} ranks a machine has fewer cores than ranks: that measures correctness, not speed"
        )
    return said


def plot(path: Path, summary: Mapping[str, Any]) -> None:
    """Seconds and retention by number of ranks, each side on its fastest mesh."""
    figure = Figure(figsize=(8.4, 3.6), dpi=DPI, facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2)
    sides = [
        name for name, _ in sorted({row["side"]: row["peer"] for row in summary["rows"]}.items(), key=_last)
    ]
    for colour, side in zip(_COLOURS * len(sides), sides, strict=False):
        rows = _fastest([row for row in summary["rows"] if row["side"] == side])
        _line(left, rows, "seconds", colour, side)
        worlds = [row["world"] for row in rows]
        first = rows[0]["seconds"]["median"] * worlds[0]
        left.plot(worlds, [first / world for world in worlds], ":", color=colour, linewidth=0.8)
        if any(row["retention"] for row in rows):
            _line(right, [row for row in rows if row["retention"]], "retention", colour, side)
    right.axhline(1, color=INK, linewidth=0.8, linestyle=":")
    left.set(xscale="log", yscale="log", ylabel="seconds of denoising")
    right.set(xscale="log", ylabel="retention of the gain")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        _dress(axes, [row["world"] for row in summary["rows"]])
    left.legend(frameon=False, fontsize=8, labelcolor=INK, title="dotted: ideal", title_fontsize=7)
    figure.savefig(path, format="png")


def _last(side: tuple[str, bool]) -> tuple[bool, bool, str]:
    """Ours first, `full` before the others."""
    name, peer = side
    return peer, name != "full", name


def _dress(axes: Axes, worlds: Sequence[int]) -> None:
    ticks = sorted(set(worlds))
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.1)
    axes.set_xlabel("ranks", fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _line(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str, colour: str, name: str) -> None:
    if not rows:
        return
    middle = [row[key]["median"] for row in rows]
    low = [row[key]["median"] - row[key]["lowest"] for row in rows]
    high = [row[key]["highest"] - row[key]["median"] for row in rows]
    worlds = [row["world"] for row in rows]
    axes.errorbar(
        worlds, middle, yerr=[low, high], color=colour, label=name, marker="o", markersize=4, capsize=3
    )


def _fastest(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each number of ranks."""
    best: dict[int, dict[str, Any]] = {}
    for row in rows:
        other = best.get(row["world"])
        if other is None or row["seconds"]["median"] < other["seconds"]["median"]:
            best[row["world"]] = row
    return [best[world] for world in sorted(best)]


def _range(values: Mapping[str, float] | None) -> str:
    if values is None:
        return "-"
    if values["lowest"] == values["highest"]:
        return f"{values['median']:.3g}"
    return f"{values['median']:.3g} ({values['lowest']:.3g} to {values['highest']:.3g})"
