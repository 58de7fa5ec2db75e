"""Degrees: how many ranks along each dimension of a mesh; which are possible, which is chosen, and why."""

import math
from typing import NamedTuple

from jano_dist.config import BLOCK_POLICIES, Config, JanoPolicyConfig, MeshConfig
from jano_dist.errors import UserError, count

DIMS = ("cfg", "kv", "ulysses")


class Degrees(NamedTuple):
    """Ranks along each dimension."""

    cfg: int
    kv: int
    ulysses: int


def choose_degrees(
    asked: MeshConfig,
    *,
    world: int,
    heads: int,
    guided: bool,
    local_world: int | None = None,
    hidden: bool = False,
) -> Degrees:
    """The degrees for `world` ranks that move the fewest bytes, between nodes above all.

    Args:
        asked: degrees the user fixed; None is chosen here.
        world: ranks started. local_world: ranks per node; None: all are on one.
        heads: of the model. guided: whether there is an uncond branch.
        hidden: whether K/V are made again in every step, so that Ulysses must exchange all of them.

    Raises:
        UserError: no such mesh; the sentence lists the valid ones.
    """
    valid = valid_degrees(world=world, heads=heads, guided=guided)
    fitting = _fitting(valid, asked)
    if fitting:
        return min(fitting, key=lambda degrees: traffic_cost(degrees, local_world or world, hidden=hidden))
    wish = " x ".join(f"--{dim} {degree}" for dim, degree in zip(DIMS, _wishes(asked), strict=True) if degree)
    listed = " or ".join(
        " ".join(f"--{dim} {degree}" for dim, degree in zip(DIMS, degrees, strict=True)) for degrees in valid
    )
    needed = math.prod(degree or 1 for degree in _wishes(asked))
    more = f", or start {needed} ranks (--nproc {needed})" if needed > world else ""
    raise UserError(
        f"{wish} does not fit {count(world, 'rank')} with {heads} heads and "
        f"guidance {'on' if guided else 'off'}: use {listed}{more}"
    )


def check_policy(name: str, degrees: Degrees, *, block_caches: bool) -> None:
    """Whether a policy runs on this mesh and with this model.

    Args:
        block_caches: whether policies can keep caches inside the model's blocks.

    Raises:
        UserError: one that chooses tokens inside the blocks, where ranks share a branch's tokens; one that
            keeps caches there, where the model has no place for them.
    """
    if name in BLOCK_POLICIES and not block_caches:
        raise UserError(
            f"policy {name} keeps caches inside the blocks, which only Wan's models have a place for: take "
            "another policy"
        )
    if name == "toca" and degrees.kv * degrees.ulysses > 1:
        raise UserError(
            f"policy toca chooses tokens inside the blocks, for which a rank needs all of its branch, not "
            f"{_product(degrees)}: start 1 rank, or 2 with guidance, or take another policy"
        )


def check_whole_steps(config: Config, degrees: Degrees) -> None:
    """Whether a config's policy runs on this mesh with a model that knows no regions (see `Geometry`).

    Raises:
        UserError: a policy that computes some of the tokens, a mesh that shares them, or a kernel for them.
    """
    if config.attention.backend not in ("auto", "torch"):
        raise UserError(
            "this model attends as diffusers does, whatever attention.backend says: set it to auto, not to "
            f"{config.attention.backend}"
        )
    policy = config.policy
    every_step = isinstance(policy, JanoPolicyConfig) and policy.static_interval == 1
    if policy.name not in ("full", "forecast", "uniform") and not every_step:
        raise UserError(
            f"this model computes all tokens of a step or none, which policy {policy.name} does not: take "
            "full, forecast or uniform, or jano with static_interval 1 for its complexity map"
        )
    if degrees.kv * degrees.ulysses > 1:
        raise UserError(
            f"this model's ranks share its branches only, not {_product(degrees)}: start 1 rank, or 2 with "
            "guidance"
        )


def explain_degrees(
    chosen: Degrees, asked: MeshConfig, *, heads: int, guided: bool, local_world: int, hidden: bool
) -> str:
    """One line on why `choose_degrees` chose this; its arguments, and its answer."""
    world = math.prod(chosen)
    name = f"{count(world, 'rank')}: {_product(chosen)}"
    rivals = _fitting(valid_degrees(world=world, heads=heads, guided=guided), asked)
    if len(rivals) == 1:
        return f"{name}, {'as asked' if any(_wishes(asked)) else 'the only possible mesh'}"
    costs = {degrees: traffic_cost(degrees, local_world, hidden=hidden) for degrees in rivals}
    best = f"{name}, chosen from {len(rivals)} possible meshes because its ranks send"
    own = costs.pop(chosen)
    if not own:
        return f"{best} nothing to each other inside the transformer"
    second = min(costs, key=lambda degrees: costs[degrees])
    return (
        f"{best} least; {_product(second)}, the next best, would send {costs[second] / own:.1f} times as much"
    )


def _product(degrees: Degrees) -> str:
    return " x ".join(f"{dim} {degree}" for dim, degree in degrees._asdict().items())


def _fitting(valid: list[Degrees], asked: MeshConfig) -> list[Degrees]:
    """Those with the degrees that are asked for."""
    wishes = _wishes(asked)
    return [
        degrees
        for degrees in valid
        if all(wish in (None, degree) for wish, degree in zip(wishes, degrees, strict=True))
    ]


def valid_degrees(*, world: int, heads: int, guided: bool) -> list[Degrees]:
    """Every mesh of `world` ranks: cfg 2 needs guidance, and ulysses must divide the heads."""
    return [
        Degrees(cfg, world // (cfg * ulysses), ulysses)
        for cfg in ((2, 1) if guided else (1,))
        for ulysses in range(heads, 0, -1)
        if heads % ulysses == 0 and world % (cfg * ulysses) == 0
    ]


# A link between nodes against one inside: NDR InfiniBand 50 GB/s, NVLink 450 GB/s each way.
_BETWEEN_NODES = 9.0
# What share of the tokens a typical sparse step computes; decides between moving queries and K/V.
_TYPICAL_SHARE = 0.25


def traffic_cost(degrees: Degrees, local_world: int, *, hidden: bool) -> float:
    """What a rank sends in a layer of a typical sparse step, both branches; links between nodes count more.

    In units of (tokens of the video x hidden size), by the volumes in docs/architecture.md.
    """
    cfg, kv, ulysses = degrees
    computed, ranks = _TYPICAL_SHARE, kv * ulysses
    kept = 1.0 if hidden else computed
    exchange = (2 * computed + 2 * kept) / ranks * (ulysses - 1) / ulysses
    resident = 2 * computed / ranks * (kv - 1)
    inside = local_world % ulysses == 0 or ulysses == 1
    near = local_world % ranks == 0
    return (
        2 / cfg * (exchange * (1 if inside else _BETWEEN_NODES) + resident * (1 if near else _BETWEEN_NODES))
    )


def _wishes(asked: MeshConfig) -> tuple[int | None, int | None, int | None]:
    return asked.cfg, asked.kv, asked.ulysses
