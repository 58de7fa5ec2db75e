"""`jano-dist plan`: what a run would need on GPUs that need not be here."""

import json
from typing import Annotated, Literal

import typer
from rich.console import Console

from jano_dist.cli import importing
from jano_dist.cli.numbers import check_cluster, check_numbers, check_rates
from jano_dist.cli.options import (
    CONFIG_HELP,
    CfgOption,
    JsonOption,
    KvOption,
    PolicyOption,
    PresetOption,
    SetOption,
    UlyssesOption,
    read_config,
)
from jano_dist.libraries import quiet_libraries


def plan(
    config: Annotated[str, typer.Option(help=CONFIG_HELP)],
    gpus: Annotated[int, typer.Option(help="Ranks, one per GPU.", min=1)],
    gpu_memory: Annotated[float, typer.Option(help="Of one GPU, in GiB, as nvidia-smi shows it.")],
    gpus_per_node: Annotated[int | None, typer.Option(help="8, or all, if left out.", min=1)] = None,
    policy: PolicyOption = None,
    preset: PresetOption = None,
    set_: SetOption = None,
    active: Annotated[float, typer.Option(help="Share of the tokens that is active.")] = 0.25,
    moderate: Annotated[float, typer.Option(help="Share of the tokens that is moderate.")] = 0.2,
    gpu: Annotated[
        Literal["h100", "h200", "b200", "a100"], typer.Option(help="For predicted seconds.")
    ] = "h100",
    gemm_tflops: Annotated[float | None, typer.Option(help="Achieved in matrix products.")] = None,
    attention_tflops: Annotated[float | None, typer.Option(help="Achieved in attention.")] = None,
    nvlink: Annotated[float | None, typer.Option(help="GB/s each way inside a node, nominal.")] = None,
    infiniband: Annotated[float | None, typer.Option(help="GB/s each way between nodes, nominal.")] = None,
    cfg: CfgOption = None,
    kv: KvOption = None,
    ulysses: UlyssesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a run would need on GPUs that need not be here: memory, FLOPs, communication and, predicted,
    seconds.

    The exit code is 1 if it does not fit.
    """
    degrees = {"mesh.cfg": cfg, "mesh.kv": kv, "mesh.ulysses": ulysses}
    settings = read_config(config, preset=preset, policy=policy, pairs=set_, named=degrees)
    per_node = gpus_per_node or min(gpus, 8)
    check_cluster(gpus, per_node, gpu_memory, active=active, moderate=moderate)
    rates = {
        "gemm_tflops": gemm_tflops,
        "attention_tflops": attention_tflops,
        "nvlink": nvlink,
        "infiniband": infiniband,
    }
    check_rates(rates)
    check_numbers(settings, ranks=gpus)
    quiet_libraries()  # before they are imported
    with importing():
        from jano_dist.account.machines import machine_named
        from jano_dist.account.table import make_plan, show_plan

    found = make_plan(
        settings,
        gpus=gpus,
        gpus_per_node=per_node,
        gpu_memory=gpu_memory,
        machine=machine_named(gpu, **rates),
        active=active,
        moderate=moderate,
    )
    if as_json:
        print(json.dumps(found))
    else:
        show_plan(found, Console(highlight=False))
    if not found["fits"]:
        raise typer.Exit(1)
