"""What things cost: memory, seconds of a step, host memory, decoding, a lost rank."""

from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from benchmarks import fail_stop
from benchmarks.first_hour import Hour, promised
from benchmarks.probes import making, plan_of, random_transformer, seconds_of, true_width
from benchmarks.step_cost import fits, share_of
from jano_dist import Config
from jano_dist.account import cache_bytes, memory_of
from jano_dist.account.memory import token_count
from jano_dist.cache import Cache, CacheSizes, Keeping, NoCache, make_caches
from jano_dist.degrees import Degrees
from jano_dist.geometry import Geometry
from jano_dist.mesh import Mesh
from jano_dist.models.base import Branch
from jano_dist.models.placement import place
from jano_dist.models.wan import WanTransformer
from jano_dist.tokens.schedule import StepKind

ONE = Degrees(1, 1, 1)
ACTIVE = (0.1, 0.25, 0.5)
TRUE = (0.8, 1.25)  # measured over predicted memory
SLOWEST = 2.0  # of what the counted FLOPs would take at the rates measured beside them
LARGE = 4096  # tokens; of fewer, launching the kernels may be what takes longest
GONE = 5.0  # seconds from the cause until no rank is left


def _size(config: Config) -> tuple[int, int, int]:
    return config.video.frames, config.video.height, config.video.width


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def _geometry(hour: Hour, config: Config) -> Geometry:
    return true_width(config, hour.layers or None).geometry


def _affordable(hour: Hour) -> Config:
    """The largest of the sizes that one device holds; the first if it holds none."""
    configs = [hour.true_width(size) for size in hour.sizes]
    held = [each for each in configs if hour.layers or fits(each, true_width(each, None), ONE, hour.device)]
    return (held or configs[:1])[-1]


def _inputs(hour: Hour, config: Config, model: WanTransformer) -> tuple[Tensor, Tensor, Branch, Tensor]:
    """Latent, timestep, branch and all tokens."""
    geometry = _geometry(hour, config)
    latent = torch.randn(geometry.channels, *geometry.latent_shape(*_size(config)), device=hour.device)
    text = torch.randn(1, config.model.max_sequence_length, geometry.text_dim, device=hour.device)
    tokens = torch.arange(token_count(geometry, config), device=hour.device)
    return latent, torch.tensor(600.0, device=hour.device), model.branch({"text": text}), tokens


def _cache(hour: Hour, geometry: Geometry, tokens: int, where: Any) -> Cache:
    sizes = CacheSizes(geometry.layers, tokens, tokens, geometry.heads, geometry.heads, geometry.head_dim)
    keeping = Keeping("native", where)
    (cache,), _ = make_caches("kv", keeping, sizes, 1, getattr(torch, hour.dtype), hour.device)
    return cache


@torch.inference_mode()
def memory(hour: Hour) -> dict[str, Any]:
    """A step that fills the cache, at true width: the account against what is there, and on a GPU at most."""
    config = _affordable(hour)
    geometry = _geometry(hour, config)
    model = _drawn(hour, config)
    latent, timestep, branch, every = _inputs(hour, config, model)
    cache = _cache(hour, geometry, len(every), "accelerator")
    counted = cache_bytes(geometry, len(every), ONE, config.cache, _dtype(hour).itemsize)
    promised(
        cache.nbytes == counted, f"a cache has {cache.nbytes} bytes, the account says {counted}: tell us"
    )
    rows: dict[str, Any] = {"size": _size(config), "layers": geometry.layers, "cache": cache.nbytes}
    rows["weights"] = sum(each.nbytes for each in model.module.parameters())
    if hour.cuda:
        torch.cuda.reset_peak_memory_stats(hour.device)
    model.forward(latent, timestep, branch, every, cache)
    if not hour.cuda:
        return rows | {"left out": "what a step takes is known of GPUs only"}
    account = memory_of(true_width(config, None), config, ONE)
    if not hour.layers:
        own = account.resident["transformer"]
        promised(own == rows["weights"], f"weights take {rows['weights']} bytes, not {own}: tell us")
    needed = rows["weights"] + cache.nbytes + sum(account.denoise.values())
    rows |= {"peak": torch.cuda.max_memory_allocated(hour.device), "predicted peak": needed}
    promised(
        TRUE[0] <= rows["peak"] / needed <= TRUE[1],
        f"a step took {_gib(rows['peak'])} where the account says {_gib(needed)}: plan with that factor, "
        "and tell us",
    )
    return rows


def _dtype(hour: Hour) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, hour.dtype)
    return dtype


def steps(hour: Hour) -> dict[str, Any]:
    """Seconds of every kind of step, one rank, against counted FLOPs at the card's own rates."""
    rows: list[dict[str, Any]] = []
    for size in hour.sizes:
        config = hour.true_width(size)
        sizes = true_width(config, hour.layers or None)
        if not hour.layers and not fits(config, sizes, ONE, hour.device):
            rows.append({"size": size, "left out": "one GPU does not hold it"})
            continue
        model = _drawn(hour, config)
        for active in ACTIVE:
            for row in share_of(model, config, sizes, ONE, active, repeats=3):
                rows.append({"size": size, **row})
                times = row["over_measured_rates"]
                promised(
                    not hour.cuda or row["rank_tokens"] < LARGE or times <= SLOWEST,
                    f"a {row['kind']} step of {row['rank_tokens']} tokens takes {times:.1f} times what its "
                    "products and attention take: look at a --trace for what is between them",
                )
        del model
    return {"rows": rows}


@torch.inference_mode()
def offloading(hour: Hour) -> dict[str, Any]:
    """Seconds of an active step with its cache here and in host memory, and of a full step with the weights
    here and fetched block by block."""
    config = hour.true_width(hour.sizes[0])
    layers = _geometry(hour, config).layers
    seconds = _caches_seconds(hour, config) | {
        f"full step, weights {weights}": _full_step_seconds(hour, config, weights)
        for weights in ("replicated", "group_offload")
    }
    return {"size": hour.sizes[0], "layers": layers, "seconds": seconds}


def _caches_seconds(hour: Hour, config: Config) -> dict[str, float]:
    model, seconds = _placed(hour, config, "replicated"), {}
    latent, timestep, branch, every = _inputs(hour, config, model)
    plan = plan_of(len(every), 0.25, 0.2)
    refresh, active = (plan.rows(kind).to(hour.device) for kind in (StepKind.REFRESH, StepKind.ACTIVE))
    for where in ("accelerator", "cpu"):
        cache = _cache(hour, _geometry(hour, config), len(every), where)
        model.forward(latent, timestep, branch, refresh, cache)
        step = partial(model.forward, latent, timestep, branch, active, cache)
        seconds[f"active step, cache on {where}"] = seconds_of(step, hour.device, 3)
        del step, cache  # or two of them would be there at once
    return seconds


def _full_step_seconds(hour: Hour, config: Config, weights: str) -> float:
    model = _placed(hour, config, weights)
    latent, timestep, branch, every = _inputs(hour, config, model)
    nothing = NoCache(_geometry(hour, config).layers)
    return seconds_of(partial(model.forward, latent, timestep, branch, every, nothing), hour.device, 2)


def _drawn(hour: Hour, config: Config) -> WanTransformer:
    """The transformer with random weights on the device."""
    layers = _geometry(hour, config).layers
    return WanTransformer(random_transformer(config, layers, _dtype(hour), hour.device))


def _placed(hour: Hour, config: Config, weights: str) -> WanTransformer:
    """The same, with its weights where the engine would put them."""
    make = partial(random_transformer, config, _geometry(hour, config).layers, _dtype(hour))

    def read() -> Any:
        return make(hour.device).cpu()  # drawn where it is quick

    skeleton = make(torch.device("meta"))
    mesh = Mesh.single(hour.device)
    return WanTransformer(place(read, skeleton, weights=weights, mesh=mesh, device=hour.device))


@torch.inference_mode()
def decode(hour: Hour) -> dict[str, Any]:
    """Wan's VAE with random weights: seconds, and on a GPU its peak against the account's."""
    rows = []
    for size in hour.sizes:
        config = hour.true_width(size)
        sizes = true_width(config, None)
        dtype = getattr(torch, config.model.vae_dtype)
        with making(dtype, hour.device):
            vae = AutoencoderKLWan().eval()
        latent = torch.randn(1, 16, *sizes.geometry.latent_shape(*size), device=hour.device, dtype=dtype)
        row: dict[str, Any] = {"size": size}
        before = torch.cuda.memory_allocated(hour.device) if hour.cuda else 0
        if hour.cuda:
            torch.cuda.reset_peak_memory_stats(hour.device)
        row["seconds"] = seconds_of(partial(vae.decode, latent), hour.device, 1)
        row["predicted"] = sum(memory_of(sizes, config, ONE, gpu=hour.cuda).decode.values())
        if hour.cuda:
            row["peak"] = torch.cuda.max_memory_allocated(hour.device) - before
            promised(
                row["peak"] <= TRUE[1] * row["predicted"],
                f"decoding {size} took {_gib(row['peak'])} where the account says {_gib(row['predicted'])}: "
                "use --set model.vae_tiling=true, and tell us",
            )
        rows.append(row)
    return {"rows": rows}


def lost_ranks(hour: Hour) -> dict[str, Any]:
    """One of two ranks is killed, one is stopped in C: how soon none is left."""
    if hour.gpus < 2:
        return {"left out": "one GPU is one rank"}
    rows = {}
    for how in ("kill", "stuck"):
        rows[how] = fail_stop.end_of("nproc", how, 2, "full")
        late = rows[how]["after_cause"]
        promised(
            late <= GONE,
            f"{how}: ranks were gone {late:.1f} s after the cause, not {GONE:g}: end what is left",
        )
    return rows
