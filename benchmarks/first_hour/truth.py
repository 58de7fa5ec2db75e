"""Whether the numbers are right: kernels, one device against another, caches, meshes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import PROMPTS
from benchmarks.first_hour import Hour, promised
from jano_dist import Engine, load_config
from jano_dist.attention.backends import Need, backends, find_facts
from jano_dist.attention.kernels import Kernel, merge
from jano_dist.degrees import valid_degrees
from jano_dist.doctor import inspect_machine
from jano_dist.media import load_latents
from jano_dist.models import read_geometry
from jano_dist.models.wan import rotate, turns
from jano_dist.observe import versions

# Largest difference from float64, relative to the largest value: some roundings of the type.
BOUNDS = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
_COMPARED = ("attention", "lse", "parts", "rotary")
SHAPES = ((1, 1), (7, 33), (256, 1024), (1000, 4096))  # queries, keys
HEADS, DIM = 4, 128
PARITY = 1e-3  # of wan-tiny's latents, float32: fifty steps of another device's roundings
MESHES = 1e-4


def what_is_here(hour: Hour) -> dict[str, Any]:
    """Versions and devices."""
    facts = {"versions": versions(), "machine": inspect_machine(), "device": hour.name}
    if hour.cuda:
        facts |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
            "capability": torch.cuda.get_device_capability(hour.device),
        }
    return facts


def kernels(hour: Hour) -> dict[str, Any]:
    """Every attention kernel that can run here, its logarithms, merging by parts, and the rotary embedding,
    against float64. Of kernels that quantize the distance is noted only."""
    rows, facts = [], find_facts(hour.device)
    for dtype, bound in BOUNDS.items():
        if not hour.cuda and dtype is torch.float16:
            continue  # nobody computes in it on a CPU
        need = Need(DIM, lse=False, dtype=str(dtype).removeprefix("torch."))
        for backend in backends().values():
            if backend.obstacle(facts, need):
                continue
            kernel = backend.kernel()
            for queries, keys in SHAPES:
                row = _kernel_at(kernel, hour.device, dtype, queries, keys, lse=backend.entry.lse)
                worst = max(each for name, each in row.items() if name in _COMPARED)
                promised(
                    worst <= bound or not kernel.exact,
                    f"kernel {kernel.name} of {hour.name} in {dtype} at {queries} queries and {keys} keys is "
                    f"{worst:.1e} from float64, not {bound:.0e}: take another backend, and tell us",
                )
                rows.append(row)
    return {"rows": rows}


def _kernel_at(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, queries: int, keys: int, *, lse: bool
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(queries)
    exact = [
        torch.randn(n, HEADS, DIM, generator=generator).to(dtype).double() for n in (queries, keys, keys)
    ]
    q, k, v = (x.to(device, dtype) for x in exact)
    scores = torch.einsum("nhd,mhd->hnm", exact[0], exact[1]) / DIM**0.5
    wanted = torch.einsum("hnm,mhd->nhd", scores.softmax(-1), exact[2])
    angle = torch.rand(queries, 1, DIM // 2, generator=generator).double()
    turned = torch.view_as_complex(exact[0].unflatten(-1, (-1, 2))) * torch.polar(
        torch.ones_like(angle), angle
    )
    tables = [x.float().repeat_interleave(2, -1).to(device) for x in (angle.cos(), angle.sin())]
    row = {
        "backend": kernel.name,
        "exact": kernel.exact,
        "dtype": str(dtype),
        "queries": queries,
        "keys": keys,
        "attention": _apart(kernel.attention(q, k, v), wanted),
        "rotary": _apart(rotate(q, turns(*tables)), torch.view_as_real(turned).flatten(-2)),
    }
    if lse:
        parts = slice(0, keys // 2), slice(keys // 2, keys)
        outs, sums = zip(*(kernel.attention_with_lse(q, k[part], v[part]) for part in parts), strict=True)
        row["lse"] = _apart(kernel.attention_with_lse(q, k, v)[1], scores.logsumexp(-1).T)
        row["parts"] = _apart(merge(torch.stack(outs), torch.stack(sums)), wanted)
    return row


def _apart(found: Tensor, wanted: Tensor) -> float:
    return float((found.double().cpu() - wanted).abs().max() / wanted.abs().max())


def _tiny(device: str, policy: str, **overrides: Any) -> Tensor:
    own = {"runtime.device": device, "video.frames": 17, "sampling.steps": 20, **overrides}
    return Engine(load_config("wan-tiny", policy=policy, overrides=own)).generate(PROMPTS[0], seed=1).latents


def parity(hour: Hour) -> dict[str, Any]:
    """wan-tiny in float32, on the CPU and on the device."""
    apart = {}
    for policy in ("full", "jano"):
        # Left alone, cuDNN's convolutions in float32 round what they multiply to TF32's 10 bits.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            one, other = (_tiny(device, policy).cpu() for device in ("cpu", hour.device.type))
        apart[policy] = float((one - other).abs().max())
        promised(
            apart[policy] <= PARITY,
            f"policy {policy} on {hour.name} is {apart[policy]:.1e} from the CPU's latents, not "
            f"{PARITY:.0e}: see that torch computes float32 products in float32",
        )
    return {"largest_difference": apart}


def caches(hour: Hour) -> dict[str, Any]:
    """Kept in host memory against on the device: the same bits."""
    rows = {}
    for kind in ("kv", "hidden"):
        for dtype in ("native", "fp8"):
            own = {"cache.kind": kind, "cache.dtype": dtype}
            here, away = (
                _tiny(hour.device.type, "jano", **own, **{"cache.device": where})
                for where in ("accelerator", "cpu")
            )
            rows[f"{kind} {dtype}"] = float((here - away).abs().max())
            promised(
                torch.equal(here, away),
                f"the {kind} cache in {dtype} makes another video from host memory than on {hour.name}: a "
                "copy is not waited for; leave cache.device alone, and tell us",
            )
    return {"largest_difference": rows}


def meshes(hour: Hour) -> dict[str, Any]:
    """Every mesh of two ranks, four and so on up to the GPUs there are, by the command line."""
    alone = load_latents(_latents_of(hour, 1, {}))
    worlds = [world for world in (2, 4, 8) if world <= hour.gpus]
    rows = {}
    for world in worlds:
        for degrees in valid_degrees(world=world, heads=read_geometry("wan-tiny").heads, guided=True):
            file = _latents_of(hour, world, degrees._asdict())
            name = "x".join(map(str, degrees))
            rows[name] = float((load_latents(file) - alone).abs().max())
            promised(
                rows[name] <= MESHES,
                f"{world} ranks as cfg x kv x ulysses {name} are {rows[name]:.1e} from one rank, not "
                f"{MESHES:.0e}: give --cfg, --kv and --ulysses another split, and tell us",
            )
    return {"largest_difference": rows}


def _latents_of(hour: Hour, world: int, degrees: dict[str, int]) -> Path:
    """A run of the command line; its latents."""
    out = hour.folder / "-".join(["mesh", str(world), *map(str, degrees.values())])
    call = [sys.executable, "-m", "jano_dist", "generate", PROMPTS[0], "--out", str(out), "--save-latents"]
    call += ["--seed", "1", "--frames", "17", "--steps", "20", "--nproc", str(world)]
    call += ["--set", f"runtime.device={hour.device.type}"]
    for name, degree in degrees.items():
        call += [f"--{name}", str(degree)]
    done = subprocess.run(call, capture_output=True, text=True, env=os.environ, check=False)
    said = (done.stderr or done.stdout).strip().splitlines() or [""]
    promised(done.returncode == 0, f"{world} ranks {json.dumps(degrees)} made no video ({said[-1]})")
    return out / "latents.safetensors"
