"""What machines do in a second: the constants behind predicted seconds. None of them was measured here.

Matrix rates are achieved ones. `benchmarks/simulate.py` prints how the H100's was calibrated and how far the
predictions for 2, 4 and 8 GPUs are from the published ones.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Link:
    """From one rank to another: so many bytes per second one way, and seconds per message."""

    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Machine:
    """Constants of one rank's device and of its links.

    Attributes:
        gemm: FLOP/s of projections and FFN. attention: of attention kernels. memory: bytes/s.
        layer_seconds: fixed cost of a layer in a forward: starting its kernels.
        step_seconds: fixed cost of a step: the scheduler, the coordinator's decision, the loop.
        decode: FLOP/s of the VAE's convolutions in 16 bits; in float32 it is half as many.
        decode_serial: share of decoding that more ranks do not shorten. decode_ranks: more do not help.
        collective_seconds: fixed cost of a collective.
        overlaps: whether collectives run beside computing, as on a stream of their own.
        near: to ranks of the same node. far: to others.
        source: where the constants come from.
    """

    name: str
    gemm: float
    attention: float
    memory: float
    layer_seconds: float
    step_seconds: float
    decode: float
    decode_serial: float
    decode_ranks: int
    collective_seconds: float
    overlaps: bool
    near: Link
    far: Link
    source: str


# The share of a link's nominal rate that collectives reach: NCCL's own model takes 360 GB/s for Hopper's 450
# (nvlinkBws in its source).
LINK_EFFICIENCY = 0.8
# The share of the nominal memory rate that a copy reaches; 3.08 of 3.35 TB/s were measured on an H100.
_MEMORY_EFFICIENCY = 0.9
# NCCL's tuning constants (ring, LL), seconds: of any collective, of a message by NVLink, by the network.
_COLLECTIVE, _NVLINK_MESSAGE, _NETWORK_MESSAGE = 6.6e-6, 0.6e-6, 2.7e-6
_PEAK = {"a100": 312e12, "h100": 989e12, "b200": 2250e12}  # dense bf16, the makers' data sheets
# Published: 2.72 s on one B200, 0.83 on 8, no gain on 16, of 633 TFLOP (720p): 0.206 + 0.794 / n.
_DECODE_OF_PEAK = 633e12 / 2.72 / _PEAK["b200"]

_H100 = Machine(
    name="h100",
    # Chosen so that the published 1837.9 s of Wan2.1-14B, 720p, 50 steps on one GPU come out.
    gemm=433e12,
    attention=370e12,  # FlashAttention-2, D 128, 16k tokens, not causal (arXiv 2407.08608, figure 5)
    memory=3.35e12 * _MEMORY_EFFICIENCY,
    layer_seconds=150e-6,
    step_seconds=5e-3,
    decode=_DECODE_OF_PEAK * _PEAK["h100"],
    decode_serial=0.206,
    decode_ranks=8,
    collective_seconds=_COLLECTIVE,
    overlaps=True,
    near=Link(450e9 * LINK_EFFICIENCY, _NVLINK_MESSAGE),
    far=Link(50e9 * LINK_EFFICIENCY, _NETWORK_MESSAGE),
    source="matrix rate calibrated on the published 1837.9 s of Wan2.1-14B on one H100; attention, memory "
    "and links published; fixed costs assumed",
)


def _scaled(name: str, memory: float, near: float, far: float, **changes: float) -> Machine:
    """The H100's share of the peak on another GPU."""
    ratio = _PEAK[name] / _PEAK["h100"]
    rates = {rate: getattr(_H100, rate) * ratio for rate in ("gemm", "attention", "decode")}
    machine = replace(
        _H100,
        name=name,
        memory=memory * _MEMORY_EFFICIENCY,
        near=replace(_H100.near, bandwidth=near * LINK_EFFICIENCY),
        far=replace(_H100.far, bandwidth=far * LINK_EFFICIENCY),
        source="matrix rates assumed: the H100's share of the peak; links and memory published",
        **rates,
    )
    return replace(machine, **changes)  # type: ignore[arg-type]


MACHINES = {
    "h100": _H100,
    "h200": replace(_H100, name="h200", memory=4.8e12 * _MEMORY_EFFICIENCY),
    "b200": _scaled("b200", memory=8e12, near=900e9, far=50e9),
    # FlashAttention-2 reaches 73 % of an A100's peak (arXiv 2307.08691).
    "a100": _scaled("a100", memory=2.04e12, near=300e9, far=25e9, attention=0.73 * _PEAK["a100"]),
}


def machine_named(
    name: str,
    *,
    gemm_tflops: float | None = None,
    attention_tflops: float | None = None,
    nvlink: float | None = None,
    infiniband: float | None = None,
) -> Machine:
    """A machine with what is known better of the user's own.

    Args:
        name: one of `MACHINES`.
        gemm_tflops, attention_tflops: achieved TFLOP/s.
        nvlink, infiniband: nominal GB/s one way, of which `LINK_EFFICIENCY` is taken.
    """
    machine = MACHINES[name]
    rates = {"gemm": gemm_tflops, "attention": attention_tflops}
    links = {"near": nvlink, "far": infiniband}
    given: dict[str, float | Link] = {key: rate * 1e12 for key, rate in rates.items() if rate}
    for key, rate in links.items():
        if rate:
            given[key] = replace(getattr(machine, key), bandwidth=rate * 1e9 * LINK_EFFICIENCY)
    if not given:
        return machine
    source = f"{', '.join(given)} as given; otherwise {machine.source}"
    return replace(machine, **given, source=source)  # type: ignore[arg-type]
