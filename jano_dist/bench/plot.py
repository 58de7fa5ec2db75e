"""Quality against work, a point for each case. Numbers are drawn as they are in quality.json."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from jano_dist.report import BLUE, DPI, FAINT, INK, VERMILLION

# Okabe and Ito's other colours, and a shape for each, for families in the order in which they come.
_LOOKS = (
    (VERMILLION, "o"), (BLUE, "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"),
    ("#56B4E9", "P"), ("#000000", "X"), ("#8A6D3B", "*"),
)  # fmt: skip
_FLOOR = "floor"


def pareto(cases: Sequence[Mapping[str, Any]], videos: int) -> bytes:
    """A PNG: PSNR in the mean and in the worst case against counted work, a line for each family of cases.

    Args:
        cases: rows of quality.json's `cases`. videos: of each.
    """
    figure = Figure(figsize=(10, 4.6), dpi=DPI, facecolor="white", layout="constrained")
    axes: Sequence[Axes] = figure.subplots(1, 2, sharex=True, sharey=True)
    families = list(dict.fromkeys(case["family"] for case in cases if case["family"] != _FLOOR))
    for panel, end, title in zip(axes, ("mean", "worst"), ("mean", f"worst of {videos}"), strict=True):
        for number, family in enumerate(families):
            own = [case for case in cases if case["family"] == family]
            _line(panel, own, end, _look(number), family)
        for case in cases:
            if case["family"] == _FLOOR:
                _floor(panel, case, end)
        panel.set_title(title, fontsize=10, color=INK, loc="left")
        panel.set_xlabel("work: counted FLOPs, share of the full run's", fontsize=9, color=INK)
        panel.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="#E5E5E5", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.tick_params(labelsize=8, colors=FAINT)
    axes[0].set_ylabel("PSNR against the full run, dB", fontsize=9, color=INK)
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        columns = min(4, len(handles))
        look: dict[str, Any] = {"frameon": False, "fontsize": 8, "labelcolor": INK}
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, **look)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _look(number: int) -> tuple[str, str]:
    """Colour and shape of a family; where the colours begin again, each has another shape."""
    around, place = divmod(number, len(_LOOKS))
    return _LOOKS[place][0], _LOOKS[(place + 3 * around) % len(_LOOKS)][1]


def _point(case: Mapping[str, Any], end: str) -> tuple[float, float] | None:
    work, psnr = case["work"], case["psnr"]
    return (work["mean"], psnr[end]) if psnr and end in psnr else None  # equal frames have none


def _line(
    axes: Axes, cases: Sequence[Mapping[str, Any]], end: str, look: tuple[str, str], family: str
) -> None:
    points = sorted(point for case in cases if (point := _point(case, end)))
    if points:
        colour, marker = look
        across, up = zip(*points, strict=True)
        axes.plot(across, up, color=colour, marker=marker, markersize=5, linewidth=1, label=family)


def _floor(axes: Axes, case: Mapping[str, Any], end: str) -> None:
    point = _point(case, end)
    if point:
        axes.axhline(point[1], color=FAINT, linewidth=0.9, linestyle="--")
        axes.annotate(
            case["name"], (1, point[1]), xycoords=("axes fraction", "data"), xytext=(-2, 2),
            textcoords="offset points", ha="right", fontsize=7, color=FAINT,
        )  # fmt: skip
