"""The model of predicted seconds against real runs on this machine's CPU: `benchmarks.simulate --check`.

The constants are measured by probes, as many ranks busy at a time as the run has: matrix products, attention
and element-wise operations at the shapes of a full step; an all-to-all of few and of many bytes; a video of
four tokens for the fixed costs. Then wan-tiny (whole engine, two branches) and one block of 14B width run on
1, 2 and 4 ranks, and each kind of step is compared with its prediction. The machine has two cores: four ranks
share them, in the probes as in the runs.
"""

import time
from dataclasses import asdict, replace
from statistics import mean, median
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.common import FixedMap, Undecoded, on_ranks, save
from benchmarks.probes import forward_seconds, plan_of, rates, true_width
from jano_dist import Config, Engine, load_config
from jano_dist.account.machines import Link, Machine
from jano_dist.account.memory import token_count
from jano_dist.account.seconds import step_seconds
from jano_dist.account.work import step_work
from jano_dist.degrees import Degrees
from jano_dist.mesh import Mesh
from jano_dist.models.sizes import ModelSizes, read_sizes
from jano_dist.models.wan import WanTransformer
from jano_dist.tokens.complexity import ACTIVE, MODERATE, STATIC
from jano_dist.tokens.schedule import StepKind
from tests.gang.test_wan_14b import block, random_weights

SHARES = (0.2, 0.2)  # active, moderate
KINDS = (StepKind.FULL, StepKind.REFRESH, StepKind.MODERATE, StepKind.ACTIVE)
TINY = {
    1: [(1, 1, 1)],
    2: [(2, 1, 1), (1, 1, 2), (1, 2, 1)],
    4: [(2, 1, 2), (2, 2, 1), (1, 2, 2)],
}
BLOCK = {1: [(1, 1, 1)], 2: [(1, 1, 2), (1, 2, 1)], 4: [(1, 1, 4)]}
BLOCK_VIDEO = {"video.frames": 13, "video.height": 128, "video.width": 256}  # 512 tokens
FEW, MANY = 64, 2**22  # bytes to each peer
CPU = torch.device("cpu")


def links(repeats: int) -> Link:
    """alpha and beta of this gang, by an all-to-all of few and of many bytes among all its ranks."""
    world = dist.get_world_size()
    if world == 1:
        return Link(1e12, 0.0)
    taken = []
    for nbytes in (FEW, MANY):
        rows = torch.zeros(world, nbytes, dtype=torch.uint8)
        received, times = torch.empty_like(rows), []
        for _ in range(repeats + 2):
            dist.barrier()
            started = time.perf_counter()
            dist.all_to_all_single(received, rows)
            times.append(time.perf_counter() - started)
        taken.append(median(times[2:]))
    peers = world - 1
    return Link(peers * (MANY - FEW) / max(taken[1] - taken[0], 1e-9), taken[0] / peers)


def fixed_costs(steps: int) -> tuple[float, float]:
    """Seconds of a layer and of a step in which next to nothing is computed: wan-tiny, 4 tokens.

    Two branches against one tell the layers' cost from the loop's.
    """
    times = []
    model = None
    for guidance in (1.0, 3.0):
        small = {"video.frames": 1, "video.height": 32, "video.width": 32, "sampling.steps": steps}
        config = load_config("wan-tiny", policy="full", overrides={**small, "sampling.guidance": guidance})
        engine = Engine(config, model=model, mesh=Mesh.single())
        model = engine.model if model is None else model
        record = Engine(config, model=Undecoded(model), mesh=Mesh.single()).generate("a red ball").record
        times.append(median(step["seconds"] for step in record["steps"][2:]))
    forward = max(0.0, times[1] - times[0])
    return forward / model.geometry.layers, max(0.0, times[0] - forward)


def measured_machine(sizes: ModelSizes, config: Config, degrees: Degrees, repeats: int) -> Machine:
    """This rank's constants, measured while the others measure theirs."""
    dtype = getattr(torch, config.model.dtype) if config.model.dtype != "auto" else torch.float32
    tokens = token_count(sizes.geometry, config)
    work = step_work(sizes, config, degrees, StepKind.FULL, tokens, device="cpu")
    dist.barrier()
    found = rates(sizes.geometry, work, tokens // degrees.kv, degrees.ulysses, dtype, CPU, repeats)
    dist.barrier()
    layer, step = fixed_costs(2 + 2 * repeats)
    link = links(4 * repeats)
    machine = Machine(
        name="this machine",
        **found,
        layer_seconds=layer,
        step_seconds=step,
        decode=1e9,
        decode_serial=0.0,
        decode_ranks=1,
        collective_seconds=0.0,
        overlaps=False,  # ranks compute on the cores that also send
        near=link,
        far=link,
        source="measured by benchmarks/simulate_check.py",
    )
    return machine


def tiny_on_a_rank(config: Config, splits: list[Degrees], repeats: int) -> list[dict[str, Any]]:
    """Every mesh of this gang: measured constants, and median seconds of each kind of step."""
    model = Engine(config, mesh=Mesh.single()).model
    sizes = read_sizes(config.model.name, local=True)
    tokens = token_count(sizes.geometry, config)
    levels = torch.full((tokens,), STATIC, dtype=torch.uint8)
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(0))
    levels[order[: round(tokens * sum(SHARES))]] = MODERATE
    levels[order[: round(tokens * SHARES[0])]] = ACTIVE
    steps = 2 + len(KINDS) * repeats
    config = config.model_copy(update={"sampling": config.sampling.model_copy(update={"steps": steps})})
    found = []
    for degrees in splits:
        machine = measured_machine(sizes, config, degrees, repeats)
        mesh = Mesh(**degrees._asdict(), local_world=dist.get_world_size(), timeout_seconds=600)
        policy = FixedMap(levels, KINDS)
        engine = Engine(config, model=Undecoded(model), mesh=mesh, policies=lambda *_, own=policy, **__: own)
        record = engine.generate("a red ball", seed=0).record
        timed = record["steps"][2:] if record else []
        seconds = {
            kind.value: median([s["seconds"] for s in timed if s["kind"] == kind.value] or [0.0])
            for kind in KINDS
        }
        found.append({"degrees": degrees._asdict(), "machine": machine, "seconds": seconds})
    return found


def block_on_a_rank(
    weights: Any, config: Config, splits: list[Degrees], repeats: int
) -> list[dict[str, Any]]:
    """The same for one block of 14B width: one forward of one branch."""
    model = WanTransformer(block(weights))
    sizes = true_width(config, 1)
    plan = plan_of(token_count(sizes.geometry, config), *SHARES)
    found = []
    for degrees in splits:
        machine = measured_machine(sizes, config, degrees, repeats)
        mesh = Mesh(**degrees._asdict(), local_world=dist.get_world_size(), timeout_seconds=600)
        times = forward_seconds(model, config, sizes, plan, mesh, dict.fromkeys(KINDS, repeats))
        seconds = {kind.value: taken for kind, taken in times.items()}
        found.append({"degrees": degrees._asdict(), "machine": machine, "seconds": seconds})
    return found


def slowest(machines: list[Machine]) -> Machine:
    """Of every constant the mean over the ranks: they wait for each other in every layer."""

    def of(key: str) -> float:
        return mean(getattr(machine, key) for machine in machines)

    rates_of = {key: of(key) for key in ("gemm", "attention", "memory", "layer_seconds", "step_seconds")}
    link = Link(*(mean(getattr(m.near, key) for m in machines) for key in ("bandwidth", "latency")))
    return replace(machines[0], **rates_of, near=link, far=link)


def compare(
    what: str, sizes: ModelSizes, config: Config, ranks: list[list[dict[str, Any]]], *, forward_only: bool
) -> list[dict[str, Any]]:
    """Prediction against measurement, a row per mesh and kind of step."""
    rows = []
    for on_each in zip(*ranks, strict=True):
        degrees = Degrees(**on_each[0]["degrees"])
        machine = slowest([rank["machine"] for rank in on_each])
        if forward_only:  # no loop around it, and nothing is gathered at its end
            machine = replace(machine, step_seconds=0.0)
        tokens = token_count(sizes.geometry, config)
        plan = plan_of(tokens, *SHARES)
        for kind in KINDS:
            work = step_work(sizes, config, degrees, kind, plan.count(kind), device="cpu")
            step = step_seconds(sizes, config, degrees, work, machine, local_world=len(on_each))
            predicted = step.total - (step.output if forward_only else 0)
            measured = max(rank["seconds"][kind.value] for rank in on_each)
            rows.append(
                {
                    "what": what,
                    "ranks": len(on_each),
                    "mesh": degrees._asdict(),
                    "kind": kind.value,
                    "tokens": work.tokens,
                    "measured_seconds": measured,
                    "predicted_seconds": predicted,
                    "error": predicted / measured - 1,
                    "parts": asdict(step),
                    "machine": asdict(machine),
                }
            )
            print(
                f"{what}, {len(on_each)} ranks {tuple(degrees)}, {kind.value:<8}: measured {measured:.4f} s, "
                f"predicted {predicted:.4f} s, {predicted / measured - 1:+.0%}",
                flush=True,
            )
    return rows


def check(frames: int, size: int, repeats: int) -> None:
    """All runs, the table, and the error by number of ranks."""
    overrides = {"video.frames": frames, "video.height": size, "video.width": size}
    tiny = load_config("wan-tiny", policy="full", overrides=overrides)
    true = {**BLOCK_VIDEO, "model.dtype": "float32", "sampling.guidance": 1.0}
    large = load_config("wan2.1-14b-720p", policy="full", overrides=true)
    limits = {"timeout": 3000, "collective_timeout": 1000}
    rows: list[dict[str, Any]] = []
    for world, splits in TINY.items():
        degrees = [Degrees(*split) for split in splits]
        ranks, threads = on_ranks(world, tiny_on_a_rank, tiny, degrees, repeats, **limits)
        rows += compare("wan-tiny", read_sizes("wan-tiny", local=True), tiny, ranks, forward_only=False)
    weights = random_weights()
    for world, splits in BLOCK.items():
        degrees = [Degrees(*split) for split in splits]
        ranks, threads = on_ranks(world, block_on_a_rank, weights, large, degrees, repeats, **limits)
        rows += compare("14B block", true_width(large, 1), large, ranks, forward_only=True)
    summary = {
        f"{what}, {world} ranks": {
            "mean_error": mean(abs(row["error"]) for row in of),
            "largest_error": max((row["error"] for row in of), key=abs),
        }
        for what in ("wan-tiny", "14B block")
        for world in TINY
        if (of := [row for row in rows if (row["what"], row["ranks"]) == (what, world)])
    }
    for name, error in summary.items():
        print(f"{name}: mean error {error['mean_error']:.0%}, largest {error['largest_error']:+.0%}")
    note = "measured, beside predictions; four ranks share two cores, in the probes as in the runs"
    save("simulate-check", {"figures": note, "errors": summary, "rows": rows}, threads)
