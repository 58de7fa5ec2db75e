"""What this machine has, and what that allows. Nothing here raises on a bare machine."""

import os
import platform
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jano_dist.attention import find_facts, survey
from jano_dist.observe import host_memory

Facts = Mapping[str, Any]

GIB = 2**30
TOKENS = 32_760  # 832x480x81 frames
TEXT_ENCODER_PARAMETERS = 5.68e9  # UMT5-XXL's encoder, counted from its layer sizes


@dataclass(frozen=True)
class _Model:
    """What one Wan2.1 model needs, for a video of `TOKENS` tokens with guidance, in bf16."""

    name: str
    layers: int
    heads: int  # of 128 each
    parameters: float  # of the transformer, counted from its layer sizes
    published_gb: float  # peak on one GPU without a K/V cache, published for the Jano paper's code

    @property
    def cache_bytes(self) -> int:
        """Keys and values of every token, layer and both branches, 2 bytes each."""
        return self.layers * self.heads * 128 * 2 * 2 * TOKENS * 2

    @property
    def weight_bytes(self) -> float:
        """Transformer and text encoder; the VAE's 0.25 GB does not show beside them."""
        return 2 * (self.parameters + TEXT_ENCODER_PARAMETERS)


SMALL = _Model("Wan2.1-1.3B", layers=30, heads=12, parameters=1.42e9, published_gb=7.57)
LARGE = _Model("Wan2.1-14B", layers=40, heads=40, parameters=14.3e9, published_gb=65.02)


def inspect_machine() -> dict[str, Any]:
    """Facts about this machine, ready for JSON; what is missing is named in a `reason`.

    Keys: python, torch {version, build, reason}, devices [{name, memory_bytes, capability}],
    backends {gloo, nccl}, nvml {available, driver, reason}, xfuser / ray / distvae {available,
    version, reason}, attention (see `survey`), memory {total_bytes, free_bytes} of the host, cores
    this process may use, disk_free_bytes in the current folder. A size that cannot be read is None.
    """
    devices, problem = _devices()
    return {
        "python": platform.python_version(),
        "torch": {"version": torch.__version__, "build": _build(), "reason": problem},
        "devices": devices,
        "backends": {
            "gloo": dist.is_available() and dist.is_gloo_available(),
            "nccl": dist.is_available() and dist.is_nccl_available(),
        },
        "nvml": _nvml(),
        "xfuser": _package("xfuser"),
        "ray": _package("ray"),
        "distvae": _package("distvae"),
        "attention": survey(find_facts(torch.device("cuda" if devices else "cpu"))),
        "memory": host_memory(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "disk_free_bytes": _disk_free(),
    }


def advice(facts: Facts) -> list[str]:
    """Short sentences on what the facts of `inspect_machine` allow, most important first."""
    devices = facts["devices"]
    lines = _gpu_advice(facts) if devices else _cpu_advice(facts)
    if not devices and facts["nvml"]["available"]:
        lines.append(f"An NVIDIA driver is here, but this PyTorch ({facts['torch']['build']}) sees no GPU.")
    return lines


def show(facts: Facts, console: Console) -> None:
    """Print `facts` as a table, then the advice that follows from them."""
    table = Table(title="This machine", title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(facts):
        table.add_row(name, Text(value))  # Text: a reason with [brackets] is no markup
    console.print(table)
    for line in advice(facts):
        console.print(Text(f"• {line}"))


def _build() -> str:
    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    return f"ROCm {torch.version.hip}" if torch.version.hip else "CPU"


def _devices() -> tuple[list[dict[str, Any]], str | None]:
    """The GPUs PyTorch sees, and what went wrong if looking failed."""
    try:
        found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    except Exception as problem:  # a driver that does not match raises RuntimeError or AssertionError
        return [], _reason(problem)
    return [
        {"name": d.name, "memory_bytes": d.total_memory, "capability": f"{d.major}.{d.minor}"} for d in found
    ], None


def _nvml() -> dict[str, Any]:
    try:
        nvml = import_module("pynvml")
        nvml.nvmlInit()
        driver = nvml.nvmlSystemGetDriverVersion()
        nvml.nvmlShutdown()
    except ModuleNotFoundError:
        return {"available": False, "driver": None, "reason": "nvidia-ml-py is not installed"}
    except Exception as problem:  # without a driver: NVMLError_LibraryNotFound
        return {"available": False, "driver": None, "reason": _reason(problem)}
    return {
        "available": True,
        "driver": driver.decode() if isinstance(driver, bytes) else driver,
        "reason": None,
    }


def _package(name: str) -> dict[str, Any]:
    """Whether `import name` works. Found first, then imported: xfuser is installed and fails at
    import, with more than ImportError, where torch has no GPU build."""
    try:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # no origin: only a folder of that name
            return {"available": False, "version": None, "reason": "not installed"}
        version = getattr(import_module(name), "__version__", None)
    except (Exception, SystemExit) as problem:
        return {"available": False, "version": None, "reason": _reason(problem)}
    return {"available": True, "version": None if version is None else str(version), "reason": None}


def _reason(problem: BaseException) -> str:
    """The first line of an exception, with its type."""
    first = (str(problem).strip() or "no message").splitlines()[0]
    return f"{type(problem).__name__}: {first}"


def _disk_free() -> int | None:
    try:
        return shutil.disk_usage(".").free
    except OSError:
        return None


def _cpu_advice(facts: Facts) -> list[str]:
    lines = ["No GPU: wan-tiny runs here on the CPU."]
    needed = SMALL.weight_bytes + SMALL.cache_bytes
    sentence = (
        f"{SMALL.name} at 832x480x81 in bf16 needs about {needed / GIB:.0f} GiB (calculated: transformer, "
        "text encoder and K/V cache), more for activations"
    )
    free = facts["memory"]["free_bytes"]
    if free is None:
        return [*lines, f"{sentence}, and is slow on a CPU."]
    verdict = "too little" if free < needed else "enough, but it is slow on a CPU"
    return [*lines, f"{sentence}; {_gib(free)} are free: {verdict}."]


def _gpu_advice(facts: Facts) -> list[str]:
    devices = facts["devices"]
    count, smallest = len(devices), min(device["memory_bytes"] for device in devices)
    gpus = "1 GPU with" if count == 1 else f"{count} GPUs, the smallest with"
    lines = [f"{gpus} {_gib(smallest)}."]
    if count > 1:
        lines.append(f"`jano-dist generate --nproc {count}` makes one video on all of them.")
    lines += [_fit(model, smallest) for model in (SMALL, LARGE)]
    oldest = min(float(device["capability"]) for device in devices)
    if oldest < 8.0 and facts["torch"]["build"].startswith("CUDA"):
        lines.append("A GPU older than Ampere (capability 8.0) has no bf16 units: bf16 is slow there.")
    if not facts["nvml"]["available"]:
        lines.append("No NVML: the GPUs' own readings (power, load) are not available.")
    return lines


def _fit(model: _Model, memory: int) -> str:
    """Whether `model` with its cache fits one GPU of `memory` bytes.

    Published GB are read as GiB, the larger unit. Where the published peak is below the weights (the
    small model) the text encoder was not on the GPU then; here it is, so it is added.
    """
    base = model.published_gb * GIB
    if base < model.weight_bytes:
        base += 2 * TEXT_ENCODER_PARAMETERS
    if base + model.cache_bytes <= memory:
        verdict = "should fit with its cache"
    elif base <= memory:
        verdict = "should fit, but only without a K/V cache (every step in full)"
    else:
        verdict = "does not fit"
    return (
        f"{model.name} at 832x480x81 in bf16 {verdict}: peak {model.published_gb:.1f} GB published; "
        f"calculated: "
        f"weights with text encoder {_gib(model.weight_bytes)}, K/V cache {_gib(model.cache_bytes)}."
    )


def _rows(facts: Facts) -> list[tuple[str, str]]:
    gpus = Counter((d["name"], d["memory_bytes"], d["capability"]) for d in facts["devices"])
    described = [f"{n} x {name}, {_gib(size)}, capability {cap}" for (name, size, cap), n in gpus.items()]
    nvml = facts["nvml"]
    return [
        ("Python", facts["python"]),
        ("PyTorch", f"{facts['torch']['version']} ({facts['torch']['build']})"),
        ("GPUs", "\n".join(described) or facts["torch"]["reason"] or "none"),
        ("backends", ", ".join(name for name, here in facts["backends"].items() if here) or "none"),
        ("NVML", f"driver {nvml['driver']}" if nvml["available"] else f"no: {nvml['reason']}"),
        *((name, _package_text(facts[name])) for name in ("xfuser", "ray", "distvae")),
        ("attention", _attention_text(facts["attention"])),
        ("memory", f"{_gib(facts['memory']['free_bytes'])} free of {_gib(facts['memory']['total_bytes'])}"),
        ("cores", str(facts["cores"])),
        ("disk", f"{_gib(facts['disk_free_bytes'])} free"),
    ]


def _attention_text(found: Mapping[str, Any]) -> str:
    """What `attention.backend` could be, those of which the same is said on one line."""
    lines: dict[str, list[str]] = {}
    for row in found["backends"]:
        limits = [
            "by name only, since it rounds to 8 bits or fewer" if not row["exact"] else "",
            "not with kv > 1, since it gives no log-sums" if not row["kv"] else "",
        ]
        can = ", ".join(filter(None, ("yes", *limits)))
        lines.setdefault(f"no: {row['reason']}" if row["reason"] else can, []).append(row["name"])
    listed = [f"{', '.join(names)}: {verdict}" for verdict, names in lines.items()]
    return "\n".join([f"auto takes {found['auto']}", *listed])


def _package_text(package: Mapping[str, Any]) -> str:
    return package["version"] or "yes" if package["available"] else f"no: {package['reason']}"


def _gib(size: float | None) -> str:
    return "unknown" if size is None else f"{size / GIB:.0f} GiB"
