"""Predicted seconds of Wan2.1-14B on 1 to 128 GPUs: full and jano, Ulysses alone, ring attention, ours.

    python -m benchmarks.simulate                # predictions: table, plot, JSON; no GPU is used
    python -m benchmarks.simulate --check        # the same model against real runs on this machine's CPU

The model is `jano_dist.account.seconds`, that of `jano-dist plan`. The H100's matrix rate is calibrated on
one published figure (Wan2.1-14B, 720p, 50 steps on one H100: 1837.9 s); those for 2, 4 and 8 GPUs are
compared. Nobody published what shares of the tokens the presets leave active on 14B: they are inferred from
the published speed-ups on one GPU, with 0.8 moderate tokens for every active one. So the speed-up on one GPU
is published, and what becomes of it on more is predicted.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from benchmarks.common import save
from benchmarks.simulate_plot import draw
from jano_dist import Config, load_config
from jano_dist.account import Room, memory_of
from jano_dist.account.fit import GIB, mesh_for
from jano_dist.account.machines import MACHINES, Link, Machine
from jano_dist.account.seconds import decode_seconds, ring_seconds, step_seconds
from jano_dist.account.work import steps_of
from jano_dist.degrees import Degrees
from jano_dist.models.sizes import ModelSizes, read_sizes

NODE = 8
WORLDS = (1, 2, 4, 8, 16, 32, 40, 64, 80, 128)  # 40 and 80: the heads divide over them
CONFIGS = {"480p": "wan2.1-14b-480p", "720p": "wan2.1-14b-720p"}
# arXiv 2603.00519, table 1, Wan-14B: the speed-up of each preset on one GPU.
SPEEDUPS = {"conservative": 1.71, "balanced": 2.02, "fast": 2.30}
MODERATE = 0.8  # moderate tokens for every active one; `jano-dist plan` assumes the same
OFFICIAL = {1: 1837.9, 2: 945.1, 4: 497.0, 8: 287.9}  # Wan2.1's own code, 14B, 720p, H100, s
PUBLISHED = (
    {"what": "official Wan2.1-14B, 720p, 50 steps, H100, s", "seconds": OFFICIAL},
    {"what": "LightX2V, I2V-14B 480p, H100, s/step", "seconds": {1: 5.18, 8: 0.75}},
    {"what": "SGLang, I2V-14B 480p, H100, s/step", "seconds": {1: 6.13, 8: 1.19}},
    {"what": "xDiT, I2V-14B 480p, H100, s/step", "seconds": {1: 8.93, 8: 2.70}},
    {"what": "FastVideo, I2V-14B 480p, H100, s/step", "seconds": {1: 7.35, 8: 2.94}},
    {
        "what": "TensorRT-LLM, Wan2.2-A14B 720p, GB200, denoising, s",
        "seconds": {1: 348.4, 2: 174.0, 4: 95.9, 8: 48.06, 64: 8.48},
    },
    {"what": "PreciseCache, 14B 720p, A800, gain over its own uncached run", "gain": {1: 2.50, 8: 2.00}},
    {"what": "SGLang Cache-DiT, gain", "gain": {1: 2.84, 2: 2.38, 4: 2.44, 8: 1.93}},
    {"what": "Astraea, Wan-1.3B, against one dense GPU", "gain": {1: 1.9, 2: 3.8, 4: 6.7, 8: 11.1}},
)


@dataclass(frozen=True)
class Scheme:
    """A way to use the GPUs: its mesh for so many of them (None: impossible), and whether kv is a ring."""

    mesh: Callable[[ModelSizes, Config, int], Degrees | None]
    ring: bool = False


def _ulysses(sizes: ModelSizes, world: int, cfg: int) -> Degrees | None:
    ranks = world // cfg
    return Degrees(cfg, 1, ranks) if ranks and sizes.geometry.heads % ranks == 0 else None


SCHEMES = {
    "Ulysses alone": Scheme(lambda sizes, config, world: _ulysses(sizes, world, 1)),
    "ring alone": Scheme(lambda sizes, config, world: Degrees(1, world, 1), ring=True),
    "CFG x Ulysses": Scheme(lambda sizes, config, world: _ulysses(sizes, world, 2)),
    "CFG x Ulysses x ring": Scheme(
        lambda sizes, config, world: (
            Degrees(2, max(1, world // 16), min(world // 2, 8)) if world > 1 else None
        ),
        ring=True,
    ),
    "ours": Scheme(
        lambda sizes, config, world: mesh_for(sizes, config, world=world, local_world=min(world, NODE))
    ),
}


@dataclass(frozen=True)
class Run:
    """Predicted seconds of one video: of all its steps, by what takes them, and of decoding."""

    parts: dict[str, float]
    decode: float
    kinds: dict[str, float]

    @property
    def denoise(self) -> float:
        return sum(self.parts.values())

    @property
    def total(self) -> float:
        return self.denoise + self.decode


def predict(
    sizes: ModelSizes,
    config: Config,
    degrees: Degrees,
    machine: Machine,
    active: float = 0.0,
    *,
    ring: bool = False,
) -> Run:
    """One video on a mesh; with `ring`, ring attention in place of KV-resident attention."""
    world = degrees.cfg * degrees.kv * degrees.ulysses
    parts: dict[str, float] = {}
    kinds = {}
    for work in steps_of(sizes, config, degrees, active=active, moderate=MODERATE * active):
        step = step_seconds(sizes, config, degrees, work, machine, local_world=NODE)
        if ring:
            layers = sizes.geometry.layers
            waited = ring_seconds(work, step, degrees, machine, layers=layers, local_world=NODE)
            step = replace(step, kv=waited)
        kinds[work.kind] = step.total
        for part, seconds in asdict(step).items():
            parts[part] = parts.get(part, 0.0) + work.steps * seconds
    return Run(parts, decode_seconds(sizes, config, machine, world=world), kinds)


def inferred_share(sizes: ModelSizes, config: Config, machine: Machine, speedup: float) -> float:
    """The share of active tokens at which the preset's predicted speed-up on one GPU is the published one."""
    alone = Degrees(1, 1, 1)
    full = predict(sizes, as_full(config), alone, machine).denoise
    low, high = 0.0, 1 / (1 + MODERATE)
    for _ in range(40):
        middle = (low + high) / 2
        gain = full / predict(sizes, config, alone, machine, middle).denoise
        low, high = (middle, high) if gain > speedup else (low, middle)
    return low


def as_full(config: Config) -> Config:
    """The same video with every token in every step."""
    return config.model_copy(update={"policy": load_config("wan2.1-14b-720p", policy="full").policy})


def without(run: Run, alone: Run, part: str, world: int) -> float:
    """Seconds of a run if this part scaled perfectly: what it takes on one GPU, divided."""
    parts = {**run.parts, "decoding": run.decode}
    ideal = {**alone.parts, "decoding": alone.decode}[part] / world
    return run.total - parts[part] + ideal


WORDS = {
    "products": "matrix products: weights read, uneven tokens",
    "attention": "attention: keys read, uneven tokens",
    "pointwise": "element-wise operations: uneven tokens",
    "fixed": "fixed cost of layers and steps",
    "ulysses": "all-to-all of Ulysses",
    "kv": "exchange between shards: queries, or in a ring keys and values",
    "output": "swap and gather of outputs",
    "decoding": "decoding (VAE)",
}


def retention(full: Run, jano: Run, full_alone: Run, jano_alone: Run, world: int) -> dict[str, Any]:
    """What of the gain on one GPU is left on `world`, whole video and steps only, and what costs most.

    A part's loss: how much more would be left if that part alone scaled perfectly, in both runs.
    """
    gain_alone = full_alone.total / jano_alone.total
    left = full.total / jano.total / gain_alone
    losses = {
        part: without(full, full_alone, part, world) / without(jano, jano_alone, part, world) / gain_alone
        - left
        for part in WORDS
    }
    worst = max(losses, key=lambda part: losses[part])
    denoise_alone = full_alone.denoise / jano_alone.denoise
    return {
        "gain": full.total / jano.total,
        "retention": left,
        "retention_of_steps": full.denoise / jano.denoise / denoise_alone,
        "largest_loss": WORDS[worst],
        "losses": {WORDS[part]: loss for part, loss in losses.items()},
    }


def rows_of(size: str, machine: Machine) -> Iterator[dict[str, Any]]:
    """Every scheme, number of GPUs and run at one size."""
    presets = {name: load_config(CONFIGS[size], preset=name) for name in SPEEDUPS}
    sizes = read_sizes(presets["balanced"].model.name, local=True)
    full = as_full(presets["balanced"])
    shares = {name: inferred_share(sizes, presets[name], machine, SPEEDUPS[name]) for name in presets}
    alone = {name: predict(sizes, c, Degrees(1, 1, 1), machine, shares[name]) for name, c in presets.items()}
    full_alone = predict(sizes, full, Degrees(1, 1, 1), machine)
    for scheme, how in SCHEMES.items():
        for world in WORLDS:
            degrees = how.mesh(sizes, full, world)
            if degrees is None or degrees.cfg * degrees.kv * degrees.ulysses != world:
                continue
            dense = predict(sizes, full, degrees, machine, ring=how.ring)
            base = {"size": size, "scheme": scheme, "gpus": world, "mesh": degrees._asdict()}
            yield {**base, "run": "full", **_figures(sizes, full, degrees, dense, full_alone, world)}
            for name, config in presets.items():
                run = predict(sizes, config, degrees, machine, shares[name], ring=how.ring)
                yield {
                    **base,
                    "run": name,
                    "active": shares[name],
                    "moderate": MODERATE * shares[name],
                    **_figures(sizes, config, degrees, run, full_alone, world),
                    **retention(dense, run, full_alone, alone[name], world),
                }


def _figures(
    sizes: ModelSizes, config: Config, degrees: Degrees, run: Run, full_alone: Run, world: int
) -> dict[str, Any]:
    return {
        "figures": "predicted",
        "seconds": run.total,
        "denoise_seconds": run.denoise,
        "decode_seconds": run.decode,
        "step_seconds": run.kinds,
        "parts": run.parts,
        "over_one_full_gpu": full_alone.total / run.total,
        "fits_80_gib": Room(80 * GIB).holds(memory_of(sizes, config, degrees)),
    }


def calibration(machine: Machine) -> list[dict[str, Any]]:
    """The official runs (Ulysses alone, one rank decodes) predicted; only that on one GPU was used."""
    config = load_config(CONFIGS["720p"], policy="full", overrides={"model.vae_parallel": "single"})
    sizes = read_sizes(config.model.name, local=True)
    rows = []
    for world, published in OFFICIAL.items():
        seconds = predict(sizes, config, Degrees(1, 1, world), machine).total
        rows.append(
            {"gpus": world, "published": published, "predicted": seconds, "error": seconds / published - 1}
        )
    return rows


def sensitivity(size: str, machine: Machine) -> list[dict[str, Any]]:
    """Retention of the balanced preset where constants are worse than assumed."""

    def half(link: Link) -> Link:
        return replace(link, bandwidth=link.bandwidth / 2)

    others = {
        "as assumed": machine,
        "links half as fast": replace(machine, near=half(machine.near), far=half(machine.far)),
        "latencies 4 times": replace(
            machine,
            collective_seconds=4 * machine.collective_seconds,
            near=replace(machine.near, latency=4 * machine.near.latency),
            far=replace(machine.far, latency=4 * machine.far.latency),
        ),
        "fixed costs twice": replace(
            machine, layer_seconds=2 * machine.layer_seconds, step_seconds=2 * machine.step_seconds
        ),
        "kernels 1.6 times as fast": replace(
            machine, gemm=1.6 * machine.gemm, attention=1.6 * machine.attention
        ),
    }
    config = load_config(CONFIGS[size], preset="balanced")
    sizes, full = read_sizes(config.model.name, local=True), as_full(config)
    rows = []
    for name, other in others.items():
        share = inferred_share(sizes, config, other, SPEEDUPS["balanced"])
        one = [predict(sizes, c, Degrees(1, 1, 1), other, share) for c in (full, config)]
        for world in (8, 16, 64):
            degrees = mesh_for(sizes, config, world=world, local_world=NODE)
            runs = [predict(sizes, c, degrees, other, share) for c in (full, config)]
            found = retention(*runs, *one, world)
            rows.append({"size": size, "if": name, "gpus": world, **found})
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Markdown: what the JSON says, for the full run and the balanced preset."""
    for size in CONFIGS:
        print(f"\n{size}, seconds per video, predicted (full / balanced; * does not fit 80 GiB)\n")
        print("| GPUs | " + " | ".join(SCHEMES) + " |\n" + "| --- " * (len(SCHEMES) + 1) + "|")
        of = {(r["scheme"], r["gpus"], r["run"]): r for r in rows if r["size"] == size}
        for world in WORLDS:
            cells = []
            for scheme in SCHEMES:
                pair = [of.get((scheme, world, run)) for run in ("full", "balanced")]
                cells.append(
                    " / ".join(f"{r['seconds']:.1f}{'' if r['fits_80_gib'] else '*'}" for r in pair if r)
                    or "-"
                )
            print(f"| {world} | " + " | ".join(cells) + " |")
        print("\n| scheme | GPUs | gain | retention | of the steps | largest loss |\n" + "| --- " * 6 + "|")
        for scheme in SCHEMES:
            for world in (8, 16, 64):
                r = of.get((scheme, world, "balanced"))
                if r:
                    loss = f"{r['largest_loss']} ({r['losses'][r['largest_loss']]:.3f})"
                    kept = f"{r['gain']:.2f} | {r['retention']:.3f} | {r['retention_of_steps']:.3f}"
                    print(f"| {scheme} | {world} | {kept} | {loss} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gpu", choices=tuple(MACHINES), default="h100")
    parser.add_argument("--check", action="store_true", help="real runs on this machine, and the error")
    parser.add_argument("--frames", type=int, default=33, help="of wan-tiny in the check")
    parser.add_argument("--size", type=int, default=256, help="its height and width")
    parser.add_argument("--repeats", type=int, default=5, help="steps of each kind in the check")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.check:
        from benchmarks.simulate_check import check  # forks ranks, which a prediction does not need

        check(args.frames, args.size, args.repeats)
        return
    machine = MACHINES[args.gpu]
    rows = [row for size in CONFIGS for row in rows_of(size, machine)]
    show(rows)
    official = calibration(MACHINES["h100"])
    for row in official:
        print(
            f"official, {row['gpus']} H100: published {row['published']} s, "
            f"predicted {row['predicted']:.1f} s, {row['error']:+.1%}"
            f"{' (calibrated on it)' if row['gpus'] == 1 else ''}"
        )
    sensitive = [row for size in CONFIGS for row in sensitivity(size, machine)]
    for row in sensitive:
        print(f"{row['size']}, {row['if']}, {row['gpus']} GPUs: retention {row['retention']:.3f}")
    figures = {
        "figures": "predicted; those under `published` are published",
        "machine": asdict(machine),
        "assumed": {"moderate_per_active": MODERATE, "speedups_on_one_gpu": SPEEDUPS, "gpus_per_node": NODE},
        "calibration": official,
        "published": PUBLISHED,
        "sensitivity": sensitive,
        "rows": rows,
    }
    path = save(f"simulate-14b-{args.gpu}", figures)
    draw(path.with_suffix(".png"), rows, OFFICIAL, args.gpu)


if __name__ == "__main__":
    main()
