"""The plot of `benchmarks.simulate`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers too: scheme, run, colour, dashes.
LINES = (
    ("ring alone", "full", "#999999", ":"),
    ("Ulysses alone", "full", "#E69F00", "--"),
    ("CFG x Ulysses x ring", "full", "#56B4E9", "--"),
    ("ours", "full", "#0072B2", "-"),
    ("CFG x Ulysses x ring", "balanced", "#CC79A7", "--"),
    ("ours", "balanced", "#D55E00", "-"),
)


def draw(path: Path, rows: Sequence[Mapping[str, Any]], official: Mapping[int, float], gpu: str) -> None:
    """Seconds per video over GPUs, a panel per size; lines are predicted, crosses published."""
    sizes = sorted({row["size"] for row in rows})
    figure = Figure(figsize=(5.2 * len(sizes), 4.6), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for axes, size in zip(panels, sizes, strict=True):
        for scheme, run, colour, dashes in LINES:
            points = [
                (row["gpus"], row["seconds"])
                for row in rows
                if (row["size"], row["scheme"], row["run"]) == (size, scheme, run)
            ]
            axes.plot(
                *zip(*points, strict=True), dashes, color=colour, marker="o", ms=3, label=f"{scheme}, {run}"
            )
        if size == "720p" and gpu == "h100":
            axes.plot(*zip(*official.items(), strict=True), "kx", label="official code, published")
        axes.set(xscale="log", yscale="log", xlabel="GPUs, 8 per node", title=f"Wan2.1-14B, {size}, 50 steps")
        axes.set_xticks([1, 2, 4, 8, 16, 32, 64, 128], [str(n) for n in (1, 2, 4, 8, 16, 32, 64, 128)])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("seconds per video (predicted)")
    panels[-1].legend(fontsize=7)
    figure.suptitle(f"Predicted, not measured: {gpu}, NVLink inside a node, InfiniBand between", fontsize=10)
    figure.savefig(path)
    print(f"drawn: {path}")
