"""What can be refused by its numbers alone, before torch and diffusers take their seconds.

The engine and the account check it all again, for programs that call them and for models that are not here.
"""

from collections.abc import Mapping

from jano_dist.config import (
    Config,
    ForecastPolicyConfig,
    JanoPolicyConfig,
    UniformPolicyConfig,
    of_second_expert,
)
from jano_dist.degrees import check_policy, check_whole_steps, choose_degrees
from jano_dist.errors import UserError, count
from jano_dist.geometry import quick_geometry
from jano_dist.tokens.schedule import check_middle


def check_numbers(config: Config, *, ranks: int) -> None:
    """Steps against the schedule; the video's size and the mesh against the model, if its sizes are at hand.

    Raises:
        UserError: they do not go together, or the model has no such name.
    """
    _check_steps(config)
    geometry = quick_geometry(config.model.name)
    if geometry:
        geometry.check_image(config.sampling.image)
        geometry.check_experts(of_second_expert(config))
        geometry.latent_shape(config.video.frames, config.video.height, config.video.width)
        guided = geometry.branches(config.sampling.guidance) == 2
        degrees = choose_degrees(config.mesh, world=ranks, heads=geometry.heads, guided=guided)
        if not geometry.regions:
            check_whole_steps(config, degrees)
        check_policy(config.policy.name, degrees, block_caches=geometry.block_caches)


def _check_steps(config: Config) -> None:
    policy, steps = config.policy, config.sampling.steps
    if not isinstance(policy, JanoPolicyConfig | ForecastPolicyConfig | UniformPolicyConfig):
        return
    if policy.warmup == steps:
        return
    try:
        check_middle(steps, policy.warmup, policy.cooldown)
    except ValueError as error:
        raise UserError(str(error)) from error


def check_cluster(gpus: int, per_node: int, memory: float, *, active: float, moderate: float) -> None:
    """What `jano-dist plan` is asked for besides the config.

    Args:
        gpus, per_node: ranks, and how many of them a node has.
        memory: of one GPU, in GiB.
        active, moderate: shares of the tokens at these levels.

    Raises:
        UserError: numbers that do not go together.
    """
    if gpus % per_node:
        raise UserError(
            f"{count(gpus, 'GPU')} cannot be put into nodes of {per_node}: "
            "give a --gpus that --gpus-per-node divides"
        )
    if not 0 < memory <= 1e6:
        raise UserError(
            f"--gpu-memory must be above 0 and at most a million GiB, not {memory:g}: "
            "give what nvidia-smi shows"
        )
    if not (active >= 0 and moderate >= 0 and active + moderate <= 1):
        raise UserError(
            f"--active {active:g} and --moderate {moderate:g} are no shares of the tokens: "
            "give two numbers from 0 to 1 that sum to 1 at most"
        )


def check_rates(rates: Mapping[str, float | None]) -> None:
    """What `jano-dist plan` is told of the user's own machine, by option; None where it was not.

    Raises:
        UserError: a rate that is none.
    """
    for name, rate in rates.items():
        if rate is not None and not 0 < rate <= 1e6:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} must be above 0 and at most a million, not {rate:g}: give a rate")
