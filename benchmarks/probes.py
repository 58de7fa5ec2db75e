"""What a device does in a second at the shapes of one layer, and a block or a whole model at true width."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from torch import Tensor

from jano_dist import Config
from jano_dist.account.memory import token_count
from jano_dist.account.seconds import ROW_BYTES
from jano_dist.account.work import StepWork
from jano_dist.attention.backends import Need, choose, find_facts
from jano_dist.attention.distributed import SequenceAttention, chunk_rows
from jano_dist.attention.kernels import Kernel
from jano_dist.cache import KVCache, NoCache
from jano_dist.degrees import Degrees
from jano_dist.geometry import KNOWN, Geometry
from jano_dist.mesh import Mesh, Pending
from jano_dist.models.sizes import ModelSizes, read_sizes, stays_float32
from jano_dist.models.wan import WanTransformer
from jano_dist.tokens.complexity import ACTIVE, MODERATE, STATIC
from jano_dist.tokens.plan import TokenPlan
from jano_dist.tokens.schedule import StepKind


def seconds_of(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median of `repeats` runs after one that is not counted; the device's work included."""
    taken = []
    for _ in range(repeats + 1):
        wait_for(device)
        started = time.perf_counter()
        work()
        wait_for(device)
        taken.append(time.perf_counter() - started)
    return median(taken[1:])


def wait_for(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def rates(
    geometry: Geometry,
    work: StepWork,
    keys: int,
    ulysses: int,
    dtype: torch.dtype,
    device: torch.device,
    repeats: int,
) -> dict[str, float]:
    """FLOP/s of a layer's projections and FFN for a rank's tokens, of the attention of all computed tokens
    with a rank's heads to `keys` tokens, and bytes/s of element-wise operations on the rank's tokens.

    Args:
        work: of the step; ulysses: ranks over which heads are divided.
    """
    width, ffn = geometry.width, geometry.ffn_dim
    rows, queries = max(work.rank_rows, 1), max(work.tokens, 1)

    def made(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device)

    x, wide, gate = made(rows, width), made(rows, ffn), made(width)
    square, up, down = made(width, width), made(ffn, width), made(width, ffn)

    def products() -> None:
        for _ in range(6):  # q, k, v, o of self-attention; q, o of cross-attention
            F.linear(x, square)
        F.linear(x, up)
        F.linear(wide, down)

    heads, dim = geometry.heads // ulysses, geometry.head_dim
    query, kv = made(queries, heads, dim), made(keys, heads, dim)
    attention = kernel_of(geometry, dtype, device).attention
    times = [
        seconds_of(work, device, repeats)
        for work in (products, lambda: attention(query, kv, kv), lambda: x * gate)
    ]
    return {
        "gemm": 2 * rows * (6 * width**2 + 2 * width * ffn) / times[0],
        "attention": 4 * queries * keys * heads * dim / times[1],
        "memory": 2 * x.nbytes / times[2],  # reads a row, writes a row; the gate stays in the processor
    }


def kernel_of(geometry: Geometry, dtype: torch.dtype, device: torch.device) -> Kernel:
    """What `attention.backend` auto takes for such a model here."""
    need = Need(geometry.head_dim, lse=True, dtype=str(dtype).removeprefix("torch."))
    return choose("auto", find_facts(device), need)


def true_width(config: Config, layers: int | None) -> ModelSizes:
    """Sizes of the config's model with so many layers; None: all."""
    sizes = read_sizes(config.model.name, local=True)
    return sizes if layers is None else replace(sizes, geometry=replace(sizes.geometry, layers=layers))


@contextmanager
def making(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """What is made inside is of that dtype and on that device."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def random_transformer(
    config: Config, layers: int, dtype: torch.dtype, device: torch.device
) -> WanTransformer3DModel:
    """Diffusers' transformer at true width with weights as torch draws them, in the dtypes of loaded ones."""
    known = {**KNOWN[config.model.name]["transformer"], "num_layers": layers}
    with making(dtype, device):
        transformer = WanTransformer3DModel(**known).eval()
    return as_loaded(transformer)


def as_loaded(transformer: WanTransformer3DModel) -> WanTransformer3DModel:
    """In float32 what diffusers would have loaded so."""
    for name, parameter in transformer.named_parameters():
        if stays_float32(transformer, name):
            parameter.data = parameter.data.float()
    return transformer


def plan_of(tokens: int, active: float, moderate: float) -> TokenPlan:
    """Exactly these shares, at random places."""
    levels = torch.full((tokens,), STATIC, dtype=torch.uint8)
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(0))
    levels[order[: round(tokens * (active + moderate))]] = MODERATE
    levels[order[: round(tokens * active)]] = ACTIVE
    return TokenPlan.from_levels(levels)


class AloneMesh:
    """Stands for a mesh of which only rank 0 is there: what others would send is what this rank has."""

    def __init__(self, degrees: Degrees) -> None:
        self._sizes = {**degrees._asdict(), "sequence": degrees.kv * degrees.ulysses}

    def size(self, dim: str) -> int:
        return self._sizes[dim]

    def index(self, dim: str) -> int:
        return 0

    def begin_all_to_all(self, rows: Tensor, sent: Any, received: Any, dim: str) -> Pending:
        wanted = sum(received)
        if len(rows) < wanted:  # the last rank's row less
            rows = rows.repeat(-(-wanted // max(len(rows), 1)), *[1] * (rows.ndim - 1))
        return Pending(rows[:wanted], None, nullcontext)

    def all_to_all(self, rows: Tensor, sent: Any, received: Any, dim: str, meanwhile: Any = None) -> Tensor:
        return self.begin_all_to_all(rows, sent, received, dim).wait()

    def begin_gather(self, rows: Tensor, counts: Any, dim: str) -> Pending:
        return self.begin_all_to_all(rows, None, counts, dim)


@torch.inference_mode()
def forward_seconds(
    model: WanTransformer,
    config: Config,
    sizes: ModelSizes,
    plan: TokenPlan,
    mesh: "Mesh | AloneMesh",
    kinds: Mapping[StepKind, int],
) -> dict[StepKind, float]:
    """Median seconds of one branch's forward on this rank, for so many forwards of each kind, interleaved.

    A refresh and the text's keys and values come before what is counted.
    """
    geometry, device, dtype = sizes.geometry, model.module.device, model.dtype
    video = config.video
    latent = torch.randn(
        geometry.channels, *geometry.latent_shape(video.frames, video.height, video.width), device=device
    )
    assert plan.tokens == token_count(geometry, config)
    text = torch.randn(1, config.model.max_sequence_length, geometry.text_dim, device=device)
    branch, timestep = model.branch({"text": text}), torch.tensor(600.0, device=device)
    ulysses, kv, ranks = mesh.size("ulysses"), mesh.size("kv"), mesh.size("sequence")
    first = mesh.index("kv") * ulysses
    shard = sum(plan.deal(StepKind.FULL, ranks, kv).counts[first : first + ulysses])
    cache = KVCache(geometry.layers, shard, geometry.heads // ulysses, geometry.head_dim, dtype, device)

    kernel = kernel_of(geometry, dtype, device)

    def forward(kind: StepKind) -> float:
        deal = plan.deal(kind, ranks, kv)
        own = deal.own(mesh.index("sequence")).to(device)
        moves, chunks = deal.moves[mesh.index("kv")], chunk_rows(device.type)
        counts = deal.counts
        attend = SequenceAttention(mesh, counts, counts, moves, chunk_rows=chunks, kernel=kernel)  # type: ignore
        kept = NoCache(geometry.layers) if kind is StepKind.FULL else cache
        wait_for(device)
        started = time.perf_counter()
        model.forward(latent, timestep, branch, own, kept, attend)
        wait_for(device)
        return time.perf_counter() - started

    forward(StepKind.REFRESH)
    taken: dict[StepKind, list[float]] = {kind: [] for kind in kinds}
    for turn in range(max(kinds.values())):
        for kind, count in kinds.items():
            if turn < count:
                taken[kind].append(forward(kind))
    return {kind: median(times) for kind, times in taken.items()}


def expected_seconds(work: StepWork, found: Mapping[str, float]) -> float:
    """Of one forward, from counted FLOPs and measured rates; element-wise operations as they are counted."""
    products = (work.rank_flops - work.rank_attention) / found["gemm"]
    return float((products + work.rank_attention / found["attention"]) / work.forwards)


def row_bytes(sizes: ModelSizes, rows: int) -> int:
    """What element-wise operations of one forward read and write."""
    return sizes.geometry.layers * rows * sizes.geometry.width * ROW_BYTES
