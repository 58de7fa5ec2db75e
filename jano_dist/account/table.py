"""`jano-dist plan`: the account of a config on a cluster that need not exist yet, as JSON and as tables."""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jano_dist.account.fit import GIB, HEADROOM, Room, complaint, gib, mesh_choice, mesh_for
from jano_dist.account.machines import Machine
from jano_dist.account.memory import Memory, caches_anything, memory_of, token_count
from jano_dist.account.seconds import StepSeconds, decode_seconds, step_seconds
from jano_dist.account.work import StepWork, steps_of
from jano_dist.config import Config
from jano_dist.degrees import Degrees, valid_degrees
from jano_dist.errors import count
from jano_dist.models.sizes import ModelSizes, read_sizes


def make_plan(
    config: Config,
    *,
    gpus: int,
    gpus_per_node: int,
    gpu_memory: float,
    machine: Machine,
    active: float,
    moderate: float,
) -> dict[str, Any]:
    """Everything `jano-dist plan` says, ready for JSON; sizes in bytes, work in FLOPs, seconds predicted.

    Args:
        gpus, gpus_per_node: ranks, and how many of them a node has.
        gpu_memory: of one GPU, in GiB.
        machine: what a GPU does in a second.
        active, moderate: shares of the tokens at these levels.

    Raises:
        UserError: an unknown model, a mesh that does not exist, a video that the model cannot make.
    """
    sizes = read_sizes(config.model.name, local=True)
    degrees = mesh_for(sizes, config, world=gpus, local_world=gpus_per_node)
    room = Room(int(gpu_memory * GIB))
    steps = steps_of(sizes, config, degrees, active=active, moderate=moderate)
    seconds = _seconds_of(sizes, config, degrees, steps, machine, gpus_per_node)
    problem = complaint(sizes, config, degrees, room, local_world=gpus_per_node)
    return {
        "model": {"name": config.model.name, "from_table": sizes.from_table},
        "video": {**config.video.model_dump(), "tokens": token_count(sizes.geometry, config)},
        "policy": {"name": config.policy.name, "active": active, "moderate": moderate},
        "cache": config.cache.model_dump() if caches_anything(config) else None,
        "gpus": {"count": gpus, "per_node": gpus_per_node, "memory": room.accelerator, "headroom": HEADROOM},
        "mesh": degrees._asdict(),
        "mesh_choice": mesh_choice(sizes, config, degrees, local_world=gpus_per_node),
        "memory": _memory(memory_of(sizes, config, degrees)),
        "fits": problem is None,
        "problem": problem,
        "machine": asdict(machine),
        "steps": [_step(step) | {"predicted_seconds": _parts(seconds[step.kind])} for step in steps],
        "generation": _generation(steps)
        | {"predicted_seconds": _run(steps, seconds, decode_seconds(sizes, config, machine, world=gpus))},
        "alternatives": [
            _alternative(sizes, config, other, room, machine, gpus_per_node, active=active, moderate=moderate)
            for other in valid_degrees(
                world=gpus,
                heads=sizes.geometry.heads,
                guided=sizes.geometry.branches(config.sampling.guidance) == 2,
            )
            if other != degrees
        ],
    }


def _memory(memory: Memory) -> dict[str, Any]:
    return {
        "resident": memory.resident,
        "encode": memory.encode,
        "denoise": memory.denoise,
        "decode": memory.decode,
        "phases": memory.phases,
        "peak": memory.peak,
        "host": memory.host,
    }


def _step(step: StepWork) -> dict[str, Any]:
    sent = {
        "ulysses": step.sent.ulysses,
        "kv": step.sent.kv,
        "output": step.sent.output,
        "total": step.sent.total,
    }
    return {
        "kind": step.kind,
        "steps": step.steps,
        "tokens": step.tokens,
        "flops": step.flops,
        "flops_per_rank": step.rank_flops,
        "sent_per_rank": sent,
        "ring_would_send_per_rank": step.sent.ring,
    }


def _generation(steps: list[StepWork]) -> dict[str, Any]:
    """All steps together; `full_flops` is what they would be with every token computed."""
    full = next(step.flops for step in steps if step.kind == "full")
    return {
        "flops": sum(step.steps * step.flops for step in steps),
        "flops_per_rank": sum(step.steps * step.rank_flops for step in steps),
        "full_flops": full * sum(step.steps for step in steps),
        "sent_per_rank": sum(step.steps * step.sent.total for step in steps),
    }


def _seconds_of(
    sizes: ModelSizes,
    config: Config,
    degrees: Degrees,
    steps: list[StepWork],
    machine: Machine,
    per_node: int,
) -> dict[str, StepSeconds]:
    """Of every kind of step."""
    return {
        step.kind: step_seconds(sizes, config, degrees, step, machine, local_world=per_node) for step in steps
    }


def _parts(seconds: StepSeconds) -> dict[str, float]:
    return {**asdict(seconds), "sent": seconds.sent, "total": seconds.total}


def _run(steps: list[StepWork], seconds: dict[str, StepSeconds], decode: float) -> dict[str, float]:
    """A generation without loading and text; `full_denoise`: were every token computed in every step."""
    denoise = sum(step.steps * seconds[step.kind].total for step in steps)
    full = seconds["full"].total * sum(step.steps for step in steps)
    return {"denoise": denoise, "decode": decode, "total": denoise + decode, "full_denoise": full}


def _alternative(
    sizes: ModelSizes,
    config: Config,
    degrees: Degrees,
    room: Room,
    machine: Machine,
    per_node: int,
    *,
    active: float,
    moderate: float,
) -> dict[str, Any]:
    memory = memory_of(sizes, config, degrees)
    steps = steps_of(sizes, config, degrees, active=active, moderate=moderate)
    seconds = _seconds_of(sizes, config, degrees, steps, machine, per_node)
    return {
        **degrees._asdict(),
        "peak": memory.peak,
        "host": memory.host_bytes,
        "fits": room.holds(memory),
        "sent_per_rank": {step.kind: step.sent.total for step in steps},
        "predicted_seconds": sum(step.steps * seconds[step.kind].total for step in steps),
    }


def show_plan(plan: dict[str, Any], console: Console) -> None:
    """Print what `make_plan` found."""
    video, gpus = plan["video"], plan["gpus"]
    lines = [
        f"{plan['model']['name']}, {video['width']}x{video['height']}, {count(video['frames'], 'frame')}: "
        f"{count(video['tokens'], 'token')}",
        f"{count(gpus['count'], 'GPU')}, {gpus['per_node']} per node",
        plan["mesh_choice"],
        f"{gib(gpus['memory'])} each, as nvidia-smi shows them, of which {gpus['headroom']:.0%} are kept as "
        "headroom. Caches and weights are exact, activations and decoding are estimates.",
    ]
    if plan["model"]["from_table"]:
        lines.append("The model's files are not on this machine: its sizes are those known for its name.")
    for line in lines:
        console.print(Text(line))
    console.print(_memory_table(plan["memory"]))
    verdict = "It fits." if plan["fits"] else f"It does not fit: {plan['problem']}."
    console.print(Text(verdict, style="bold"))
    console.print(_steps_table(plan))
    done = plan["generation"]
    console.print(
        Text(
            f"A generation: {_tera(done['flops'])} TFLOP, {done['flops'] / done['full_flops']:.0%} of "
            f"computing every token; a rank does {_tera(done['flops_per_rank'])} of them and sends "
            f"{gib(done['sent_per_rank'])}."
        )
    )
    console.print(_seconds_table(plan["steps"]))
    console.print(Text(_prediction(plan)))
    if plan["alternatives"]:
        console.print(_mesh_table(plan))


def _prediction(plan: dict[str, Any]) -> str:
    """Seconds of a generation, and what they rest on."""
    machine, run = plan["machine"], plan["generation"]["predicted_seconds"]
    near, far = (machine[link]["bandwidth"] / 1e9 for link in ("near", "far"))
    return (
        f"Predicted, not measured: {_short(run['total'])} s, of which {_short(run['denoise'])} s are the "
        f"steps ({_short(run['full_denoise'])} s with every token computed) and {_short(run['decode'])} s "
        f"decoding; loading and text come on top. {machine['name']}: {machine['gemm'] / 1e12:.0f} TFLOP/s "
        f"in matrix products, {machine['attention'] / 1e12:.0f} in attention, {near:.0f} GB/s between ranks "
        f"of a node, {far:.0f} between nodes ({machine['source']}). --gpu, --gemm-tflops, "
        "--attention-tflops, --nvlink and --infiniband change them."
    )


def _short(seconds: float) -> str:
    """Three figures at most; thousandths of a second are the last that are shown."""
    return f"{seconds:,.0f}" if seconds >= 100 else f"{round(seconds, 3):.3g}"


def _memory_table(memory: dict[str, Any]) -> Table:
    table = Table("phase", "part", title="Memory of the rank that needs most", title_justify="left")
    table.add_column("size", justify="right")
    groups = {"all steps; decoding without cache": memory["resident"]}
    groups |= {f"{phase}, on top": memory[phase] for phase in ("denoise", "decode")}
    groups |= {"encode, instead": memory["encode"], "host memory": memory["host"]}
    for group, parts in groups.items():
        for place, (name, size) in enumerate((n, s) for n, s in parts.items() if s):
            table.add_row("" if place else group, name, gib(size))
        if parts:
            table.add_section()
    for phase, size in memory["phases"].items():
        table.add_row("peak", phase, gib(size), style="bold" if size == memory["peak"] else None)
    return table


def _steps_table(plan: dict[str, Any]) -> Table:
    policy = plan["policy"]
    shares = f"assuming {policy['active']:.0%} of the tokens active, {policy['moderate']:.0%} moderate"
    title = f"Steps, {shares}; GiB that a rank sends"
    table = Table(title=title, title_justify="left", caption_justify="left", pad_edge=False)
    table.add_column("step", no_wrap=True)
    for name in ("steps", "tokens", "TFLOP", "each", "ulysses", "kv", "output", "ring"):
        table.add_column(name, justify="right", no_wrap=True)
    for step in plan["steps"]:
        sent = step["sent_per_rank"]
        sizes = (sent["ulysses"], sent["kv"], sent["output"], step["ring_would_send_per_rank"])
        table.add_row(
            step["kind"],
            str(step["steps"]),
            str(step["tokens"]),
            _tera(step["flops"]),
            _tera(step["flops_per_rank"]),
            *(_bare_gib(size) for size in sizes),
        )
    table.caption = (
        "each: TFLOP of one rank; ring: what ring attention would send in place of kv; it is not used"
    )
    return table


def _seconds_table(steps: list[dict[str, Any]]) -> Table:
    table = Table(title="Predicted seconds of a step, by what takes them", title_justify="left")
    table.add_column("step", no_wrap=True)
    parts = ("products", "attention", "pointwise", "fixed", "sent", "total")
    for name in parts:
        table.add_column(name, justify="right", no_wrap=True)
    for step in steps:
        table.add_row(step["kind"], *(_short(step["predicted_seconds"][name]) for name in parts))
    return table


def _mesh_table(plan: dict[str, Any]) -> Table:
    title = "Meshes, the chosen one first; GiB a rank sends in a step of each kind; predicted s of all steps"
    table = Table("cfg x kv x ulysses", title=title, title_justify="left")
    table.add_column("peak", justify="right", no_wrap=True)
    table.add_column("fits")
    kinds = [step["kind"] for step in plan["steps"]]
    for kind in kinds:
        table.add_column(kind, justify="right", no_wrap=True, min_width=len(kind))
    table.add_column("s", justify="right", no_wrap=True)
    chosen = {
        **plan["mesh"],
        "peak": plan["memory"]["peak"],
        "fits": plan["fits"],
        "sent_per_rank": {step["kind"]: step["sent_per_rank"]["total"] for step in plan["steps"]},
        "predicted_seconds": plan["generation"]["predicted_seconds"]["denoise"],
    }
    usable = plan["gpus"]["memory"] * (1 - plan["gpus"]["headroom"])
    for place, row in enumerate((chosen, *plan["alternatives"])):
        name = f"{row['cfg']} x {row['kv']} x {row['ulysses']}"
        fits = "yes" if row["fits"] else f"{gib(row['peak'] - usable)} over"
        sent = [_bare_gib(row["sent_per_rank"][kind]) for kind in kinds]
        seconds = _short(row["predicted_seconds"])
        table.add_row(name, gib(row["peak"]), fits, *sent, seconds, style=None if place else "bold")
    return table


def _tera(flops: float) -> str:
    """In TFLOP: three figures at least."""
    tera = flops / 1e12
    return f"{tera:,.0f}" if tera >= 100 else f"{tera:.3g}"


def _bare_gib(size: float) -> str:
    """In GiB, without the word, three figures at most; what is there does not look like nothing."""
    number = max(size / GIB, 0.01)
    return "0" if not size else f"{number:.0f}" if number >= 100 else f"{number:.3g}"
