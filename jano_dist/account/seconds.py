"""Predicted seconds: what `account.work` counts over what `account.machines` does in a second.

A rank's step = matrix products + attention + element-wise operations + fixed costs (starting a layer's
kernels, the loop) + collectives, one after the other, but for the chunks of KV-resident attention. Matrix
products and attention take as long as their FLOPs, or as reading the weights, or the keys and values, if that
is longer (the roofline of Williams et al., 2009).

A collective is an exchange of equal parts with p peers: alpha0 + sum over peers of alpha + bytes / beta
(the pairwise exchange of Thakur, Rabenseifner and Gropp, 2005), with one alpha and beta inside a node and
another between nodes; both kinds of links work at the same time. Weights are taken to be on the device.
"""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import NamedTuple

from jano_dist.account.caches import cache_bytes
from jano_dist.account.machines import Link, Machine
from jano_dist.account.memory import model_elements, sequence_length
from jano_dist.account.work import StepWork
from jano_dist.config import CacheConfig, Config
from jano_dist.degrees import Degrees
from jano_dist.models.sizes import ModelSizes

# Bytes that a block's element-wise operations read and write per value of a row: norms, modulation, rotary
# tables, gates, residuals, GELU. Counted in diffusers' Wan block, where most of them are in float32.
ROW_BYTES = 260
# FLOPs of decoding per pixel, frame and squared width of the VAE's last stage; a test counts them.
DECODE_FLOPS = 922


class Peers(NamedTuple):
    """How many ranks a rank exchanges with: of its own node, and of others."""

    near: int
    far: int


@dataclass(frozen=True)
class StepSeconds:
    """Seconds of one step of the slowest rank, by what takes them; see the module's text."""

    products: float
    attention: float
    pointwise: float
    fixed: float
    ulysses: float
    kv: float
    output: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.products + self.attention + self.pointwise + self.fixed + self.sent

    @property
    def sent(self) -> float:
        """In collectives."""
        return self.ulysses + self.kv + self.output


def step_seconds(
    sizes: ModelSizes, config: Config, degrees: Degrees, work: StepWork, machine: Machine, *, local_world: int
) -> StepSeconds:
    """What one step of this work takes.

    Args:
        work: of `degrees`, as `step_work` counts it.
        local_world: ranks per node.
    """
    geometry, element = sizes.geometry, model_elements(sizes, config)[0]
    peers = peers_of(degrees, local_world)
    weights = sum(layer.nbytes(element) for layer in sizes.layers)
    # What attention reads does not depend on how it is kept.
    joint = geometry.joint_tokens(config.model.max_sequence_length)
    every = sequence_length(geometry, config)
    keys = cache_bytes(geometry, every, degrees, CacheConfig(), element, text=joint)
    values = work.forwards * geometry.layers * work.rank_rows * geometry.width
    products = (work.rank_flops - work.rank_attention) / machine.gemm
    attention = max(work.rank_attention / machine.attention, work.forwards * keys / machine.memory)
    kv = exchange_seconds(work.sent.kv, work.calls.kv, peers["kv"], machine)
    if kv and machine.overlaps:
        kv = waited_for(kv, attention, work.calls.kv // (2 * geometry.attentions * work.forwards))
    partners = Peers(*(sum(pair) for pair in zip(peers["cfg"], peers["sequence"], strict=True)))
    return StepSeconds(
        products=max(products, work.forwards * weights / machine.memory),
        attention=attention,
        pointwise=values * ROW_BYTES / machine.memory,
        fixed=work.forwards * geometry.layers * machine.layer_seconds + machine.step_seconds,
        ulysses=exchange_seconds(work.sent.ulysses, work.calls.ulysses, peers["ulysses"], machine),
        kv=kv,
        output=exchange_seconds(work.sent.output, work.calls.output, partners, machine),
    )


def waited_for(exchange: float, attention: float, chunks: int) -> float:
    """Of the exchange of KV-resident attention, what is waited for: the first chunk's queries and the last
    one's outputs, and of the rest what takes longer than the attention of the chunks meanwhile."""
    first = 1 / chunks
    return exchange * first + max(0.0, exchange - attention) * (1 - first)


def exchange_seconds(nbytes: float, calls: int, peers: Peers, machine: Machine) -> float:
    """`calls` collectives in which a rank sends `nbytes` in all, the same to each of its peers."""
    if not calls or not sum(peers):
        return 0.0
    links: tuple[Link, Link] = (machine.near, machine.far)
    latency = sum(count * link.latency for count, link in zip(peers, links, strict=True))
    part = nbytes / sum(peers)
    wire = max(count * part / link.bandwidth for count, link in zip(peers, links, strict=True))
    return calls * (machine.collective_seconds + latency) + wire


def peers_of(degrees: Degrees, local_world: int) -> dict[str, Peers]:
    """Along every dimension, the peers of the rank that has most of them in other nodes.

    Ranks are numbered as in `Mesh`, node by node.
    """
    _, kv, ulysses = degrees
    ranks = range(math.prod(degrees))
    groups: dict[str, Callable[[int], Hashable]] = {  # ranks with the same key are in the same group
        "cfg": lambda rank: rank % (kv * ulysses),
        "kv": lambda rank: (rank // (kv * ulysses), rank % ulysses),
        "ulysses": lambda rank: rank // ulysses,
        "sequence": lambda rank: rank // (kv * ulysses),
    }
    found = {}
    for dim, key in groups.items():
        members: dict[Hashable, list[int]] = {}
        for rank in ranks:
            members.setdefault(key(rank), []).append(rank // local_world)
        found[dim] = max(
            (
                Peers(nodes.count(node) - 1, len(nodes) - nodes.count(node))
                for nodes in members.values()
                for node in nodes
            ),
            key=lambda peers: peers.far,
        )
    return found


def decode_seconds(sizes: ModelSizes, config: Config, machine: Machine, *, world: int) -> float:
    """Decoding the latent, once per video; on all ranks, or on one where the config says so."""
    video = config.video
    flops = DECODE_FLOPS * sizes.vae_channels**2 * video.frames * video.height * video.width
    alone = flops / machine.decode * (2 if config.model.vae_dtype == "float32" else 1)
    ranks = min(world, machine.decode_ranks) if config.model.vae_parallel == "auto" else 1
    return alone * (machine.decode_serial + (1 - machine.decode_serial) / ranks)


def ring_seconds(
    work: StepWork, ours: StepSeconds, degrees: Degrees, machine: Machine, *, layers: int, local_world: int
) -> float:
    """Of a step in which ring attention takes the place of `kv`: what is waited for, on top of computing.

    In each of kv - 1 hops a rank passes the keys and values it has to its neighbour while it attends to
    them; waited for is what a hop takes longer than that (Liu et al., "Ring Attention", 2023). The slowest
    link decides. Nothing is lost to smaller kernels, so this is ring attention at its best.

    Args:
        work, ours: of the same mesh with KV-resident attention.
    """
    hops = degrees.kv - 1
    if not hops:
        return 0.0
    link = machine.far if peers_of(degrees, local_world)["kv"].far else machine.near
    calls = layers * work.forwards
    hop = calls * (machine.collective_seconds + link.latency) + work.sent.ring / hops / link.bandwidth
    return hops * max(0.0, hop - ours.attention / degrees.kv)
