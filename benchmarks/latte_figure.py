"""Draw figure 1 of the method's supplement (arXiv 2603.00519) for a Latte model.

    python -m benchmarks.latte_figure [--model FOLDER] [--prompt TEXT] [--steps N] [--size N] --out FIGURE.png

At four places of a middle frame, over the steps: what the model predicts, the velocity along DDIM's own path
(equation 1), and the velocity of the straight path, which is what scores see. Without a folder the model is a
tiny one of random weights, with Latte-1's noise table, that knows nothing.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from jano_dist import Engine, load_config
from jano_dist.bench.stand_ins import recording
from jano_dist.models import read_geometry
from jano_dist.sampling.flow import Path as SamplingPath
from tests.latte_tiny import save_latte

TITLES = ("predicted noise", "velocity along DDIM's path (eq. 1)", "velocity of the straight path")
PLACES = {"A": (0.2, 0.2), "B": (0.25, 0.75), "C": (0.6, 0.4), "D": (0.85, 0.8)}  # shares of height and width


def main() -> None:
    """Run the model in full and write the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a Latte folder")
    parser.add_argument("--prompt", default="a red ball rolls over green grass")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--size", type=int, default=512, help="height and width")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or save_latte(Path(folder), beta_end=0.02)
        frames, times, signals = run(model, given.prompt, given.steps, given.size, given.seed)
    figure(frames, times, signals).savefig(given.out, dpi=120)


def run(
    folder: Path, prompt: str, steps: int, size: int, seed: int
) -> tuple[np.ndarray, Tensor, list[Tensor]]:
    """Frames [T, H, W, 3], the timesteps [S], and for each of `TITLES` the signal [S, C, T, H, W]."""
    video = {"frames": read_geometry(str(folder)).frames, "height": size, "width": size}  # type: ignore
    overrides = {"model.name": str(folder), "model.dtype": "auto", "sampling.steps": steps} | {
        f"video.{name}": value for name, value in video.items()
    }
    heard: list[Tensor] = []
    engine = Engine(load_config("latte-512", policy="full", overrides=overrides), policies=recording(heard))
    made = engine.generate(prompt, seed=seed)
    scheduler = engine.model.scheduler(steps, None, engine.latent_shape)
    path, latent = SamplingPath.of(scheduler), engine.model.noise(engine.latent_shape, seed)
    straight = replace(path, predicts="flow_prediction")
    signals: tuple[list[Tensor], ...] = ([], [], [])
    for step, timestep in enumerate(scheduler.timesteps):
        velocity = heard[step].to(latent)
        _, noise = straight.ends(velocity, latent, step)
        along = straight.velocity(velocity, latent, step)
        for signal, value in zip(signals, (noise, along, velocity), strict=True):
            signal.append(value.cpu())
        given = {"epsilon": noise, "flow_prediction": velocity}[path.predicts]
        latent = scheduler.step(given[None], timestep, latent[None], return_dict=False)[0][0]
    return made.frames, scheduler.timesteps.cpu(), [torch.stack(each) for each in signals]


def figure(frames: np.ndarray, times: Tensor, signals: list[Tensor]) -> Figure:
    """Two frames with the places, and a panel for each signal: its first channel there, over the steps."""
    drawn = Figure(figsize=(16, 7), layout="constrained")
    axes = drawn.subplot_mosaic("eeelll\n001122")
    middle = len(frames) // 2
    for name, frame in (("e", middle - 1), ("l", middle)):
        _picture(axes[name], frames[frame], f"frame {frame}")
    for number, (title, signal) in enumerate(zip(TITLES, signals, strict=True)):
        _curves(axes[str(number)], times, signal[:, 0, middle], title)
    axes["0"].legend(title="place")
    return drawn


def _picture(axes: Axes, frame: np.ndarray, title: str) -> None:
    axes.imshow(frame)
    axes.set(title=title, xticks=[], yticks=[])
    for name, (y, x) in PLACES.items():
        place = x * frame.shape[1], y * frame.shape[0]
        axes.plot(*place, "o", color="white", markeredgecolor="black")
        axes.annotate(name, place, xytext=(6, 6), textcoords="offset points", color="white", weight="bold")


def _curves(axes: Axes, times: Tensor, signal: Tensor, title: str) -> None:
    """`signal` [S, H, W]."""
    _, height, width = signal.shape
    for name, (y, x) in PLACES.items():
        axes.plot(times, signal[:, int(y * height), int(x * width)], label=name)
    axes.set(title=title, xlabel="timestep")
    axes.invert_xaxis()  # sampling runs from noise to data
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    main()
