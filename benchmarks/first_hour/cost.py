# ruff: noqa: E501, B023
"""What things cost: memory, seconds of a step, host memory, decoding, a lost rank."""

import time
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.hooks import apply_group_offloading

from benchmarks import fail_stop
from benchmarks.first_hour import Hour, promised
from benchmarks.probes import plan_of, random_model, seconds_of, true_width, wait_for
from benchmarks.step_cost import fits, share_of
from jano_dist.account import memory_of
from jano_dist.account.memory import token_count
from jano_dist.cache import CacheSizes, Keeping, NoCache, make_caches
from jano_dist.degrees import Degrees
from jano_dist.geometry import KNOWN
from jano_dist.models.base import Branch
from jano_dist.models.wan import WanTransformer
from jano_dist.tokens.schedule import StepKind

ONE = Degrees(1, 1, 1)
ACTIVE = (0.1, 0.25, 0.5)
TRUE = (0.8, 1.25)  # measured over predicted memory
SLOWEST = 2.0  # of what the counted FLOPs would take at the rates measured beside them
GONE = 5.0  # seconds from the cause until no rank is left


def memory(hour: Hour) -> dict[str, Any]:
    """A full step, then one that fills the cache, at true width: the account against the allocator's peak."""
    config = _affordable(hour)
    sizes = true_width(config, hour.layers or None)
    predicted = memory_of(sizes, config, ONE)
    rows = {"size": _size(config), "predicted": predicted.resident | predicted.denoise}
    model = random_model(config, sizes, getattr(torch, hour.dtype), hour.device)
    weights = sum(each.nbytes for each in model.module.parameters())
    rows["weights"] = weights
    caches = _forwards(hour, config, model)
    rows["cache"] = caches
    if hour.layers == 0:
        promised(
            weights == predicted.resident["transformer"],
            f"the account says {predicted.resident['transformer']} bytes of weights and {weights} are there: "
            "tell us",
        )
    if hour.cuda:
        peak = torch.cuda.max_memory_allocated(hour.device)
        needed = weights + caches + sum(predicted.denoise.values()) + predicted.resident["text K/V"]
        rows |= {"peak": peak, "needed": needed, "over": peak / needed}
        promised(
            TRUE[0] <= rows["over"] <= TRUE[1],
            f"a step took {peak / 2**30:.1f} GiB where the account says {needed / 2**30:.1f}: plan with that "
            "factor, and tell us",
        )
    return rows


def _affordable(hour: Hour) -> Any:
    """The first of the sizes that one device holds, smallest last."""
    for size in reversed(hour.sizes):
        config = hour.true_width(size)
        if hour.layers or fits(config, true_width(config, None), ONE, hour.device):
            return config
    return hour.true_width(hour.sizes[0])


def _size(config: Any) -> list[int]:
    return [config.video.frames, config.video.height, config.video.width]


@torch.inference_mode()
def _forwards(hour: Hour, config: Any, model: WanTransformer) -> int:
    """One branch's full step and refresh; bytes of its cache."""
    geometry = true_width(config, hour.layers or None).geometry
    latent, branch, every = _inputs(hour, config, model)
    sizes = CacheSizes(
        geometry.layers, len(every), len(every), geometry.heads, geometry.heads, geometry.head_dim
    )
    dtype = getattr(torch, hour.dtype)
    (cache,), _ = make_caches("kv", Keeping(), sizes, 1, dtype, hour.device)
    if hour.cuda:
        torch.cuda.reset_peak_memory_stats(hour.device)
    timestep = torch.tensor(600.0, device=hour.device)
    model.forward(latent, timestep, branch, every, cache)
    return cache.nbytes


def _inputs(hour: Hour, config: Any, model: WanTransformer) -> tuple[torch.Tensor, Branch, torch.Tensor]:
    sizes = true_width(config, None)
    shape = sizes.geometry.latent_shape(*_size(config))
    latent = torch.randn(sizes.geometry.channels, *shape, device=hour.device)
    text = torch.randn(1, config.model.max_sequence_length, sizes.geometry.text_dim, device=hour.device)
    tokens = torch.arange(token_count(sizes.geometry, config), device=hour.device)
    return latent, model.branch({"text": text}), tokens


def steps(hour: Hour) -> dict[str, Any]:
    """Seconds of every kind of step, one rank, against counted FLOPs at the card's own rates."""
    rows = []
    for size in hour.sizes:
        config = hour.true_width(size)
        sizes = true_width(config, hour.layers or None)
        if not hour.layers and not fits(config, sizes, ONE, hour.device):
            rows.append({"size": size, "left out": "one GPU does not hold it"})
            continue
        model = random_model(config, sizes, getattr(torch, hour.dtype), hour.device)
        for active in ACTIVE:
            for row in share_of(model, config, sizes, ONE, active, repeats=3):
                rows.append({"size": size, **row})
                if not hour.cuda or row["rank_tokens"] < 4096:
                    continue  # so small, launching its kernels may be what takes longest
                promised(
                    row["over_measured_rates"] <= SLOWEST,
                    f"a {row['kind']} step of {row['rank_tokens']} tokens takes {row['over_measured_rates']:.1f} "
                    "times what its products and attention take: look at a --trace for what is between them",
                )
        del model
    return {"rows": rows}


@torch.inference_mode()
def offloading(hour: Hour) -> dict[str, Any]:
    """Seconds of a full forward with the weights on the device, and fetched layer by layer; of an active
    step's cache on the device, and in host memory."""
    config = hour.true_width(hour.sizes[0])
    sizes = true_width(config, hour.layers or None)
    known = {**KNOWN[config.model.name]["transformer"], "num_layers": sizes.geometry.layers}
    model = random_model(config, sizes, getattr(torch, hour.dtype), hour.device)
    latent, branch, every = _inputs(hour, config, model)
    timestep, plan = torch.tensor(600.0, device=hour.device), plan_of(len(every), 0.25, 0.2)
    rows, dtype, geometry = {}, getattr(torch, hour.dtype), sizes.geometry
    shapes = (geometry.layers, len(every), len(every), geometry.heads, geometry.heads, geometry.head_dim)
    for where in ("accelerator", "cpu"):
        (cache,), _ = make_caches("kv", Keeping("native", where), CacheSizes(*shapes), 1, dtype, hour.device)
        refresh, active = (plan.rows(kind).to(hour.device) for kind in (StepKind.REFRESH, StepKind.ACTIVE))
        model.forward(latent, timestep, branch, refresh, cache)
        rows[f"active step, cache: {where}"] = seconds_of(
            lambda: model.forward(latent, timestep, branch, active, cache), hour.device, 3
        )
    full = model.branch({"text": branch.text})
    none = NoCache(geometry.layers)
    rows["full step, weights on the device"] = seconds_of(
        lambda: model.forward(latent, timestep, full, every, none), hour.device, 2
    )
    if hour.cuda:
        del model
        away = WanTransformer3DModel(**known).to(dtype).eval()
        apply_group_offloading(
            away,
            onload_device=hour.device,
            offload_device=torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
            use_stream=True,
        )
        fetched = WanTransformer(away)
        rows["full step, weights in host memory"] = seconds_of(
            lambda: fetched.forward(latent, timestep, full, every, none), hour.device, 2
        )
    return {"seconds": rows, "size": hour.sizes[0], "layers": geometry.layers}


@torch.inference_mode()
def decode(hour: Hour) -> dict[str, Any]:
    """Wan's VAE with random weights: seconds, and its peak against the account's."""
    rows = []
    for size in hour.sizes:
        config = hour.true_width(size)
        sizes = true_width(config, None)
        dtype = getattr(torch, config.model.vae_dtype)
        predicted = sum(memory_of(sizes, config, ONE).decode.values())
        with torch.device(hour.device):
            vae = AutoencoderKLWan().to(dtype).eval()
        latent = torch.randn(1, 16, *sizes.geometry.latent_shape(*size), device=hour.device, dtype=dtype)
        if hour.cuda:
            torch.cuda.reset_peak_memory_stats(hour.device)
        before = torch.cuda.memory_allocated(hour.device) if hour.cuda else 0
        wait_for(hour.device)
        started = time.perf_counter()
        vae.decode(latent)
        wait_for(hour.device)
        row = {"size": size, "seconds": time.perf_counter() - started, "predicted": predicted}
        if hour.cuda:
            row["peak"] = torch.cuda.max_memory_allocated(hour.device) - before
            promised(
                row["peak"] <= TRUE[1] * predicted,
                f"decoding {size} took {row['peak'] / 2**30:.1f} GiB where the account says "
                f"{predicted / 2**30:.1f}: use --set model.vae_tiling=true, and tell us",
            )
        rows.append(row)
    return {"rows": rows}


def lost_ranks(hour: Hour) -> dict[str, Any]:
    """One of two ranks is killed, one is stopped in C: how soon none is left."""
    if hour.gpus < 2:
        return {"left out": "one GPU is one rank"}
    rows = {}
    for how in ("kill", "stuck"):
        end = fail_stop.end_of("nproc", how, 2, "full")
        rows[how] = end
        promised(
            end["after_cause"] <= GONE,
            f"{how}: ranks were gone {end['after_cause']:.1f} s after the cause, not {GONE:g}: end what is left "
            "by hand, and tell us",
        )
    return rows
