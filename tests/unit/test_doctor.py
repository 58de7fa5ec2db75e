import io
import json
import os
import platform
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rich.console import Console

from jano_dist.attention import survey
from jano_dist.attention.backends import Facts
from jano_dist.doctor import advice, inspect_machine, show

GIB = 2**30


def facts(gpus: int = 0, gib: float = 80, **changed: Any) -> dict[str, Any]:
    """A machine with everything installed."""
    here = {"available": True, "version": "1.0", "reason": None}
    gpu = {"name": "NVIDIA Test", "memory_bytes": int(gib * GIB), "capability": "9.0"}
    return {
        "python": "3.11.7",
        "torch": {"version": "2.13.0", "build": "CUDA 12.8" if gpus else "CPU", "reason": None},
        "devices": [gpu] * gpus,
        "backends": {"gloo": True, "nccl": gpus > 0},
        "nvml": {"available": gpus > 0, "driver": "570.1", "reason": None if gpus else "no driver"},
        "xfuser": here,
        "ray": here,
        "distvae": here,
        "attention": {"auto": "torch", "backends": []},
        "memory": {"total_bytes": 64 * GIB, "free_bytes": 60 * GIB},
        "cores": 8,
        "disk_free_bytes": 500 * GIB,
    } | changed


def told(**kwargs: Any) -> str:
    return "\n".join(advice(facts(**kwargs)))


def shown(machine: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=200)
    show(machine, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_this_machine() -> None:
    found = inspect_machine()
    assert json.loads(json.dumps(found)) == found
    assert found["python"] == platform.python_version()
    assert found["torch"]["version"] == torch.__version__
    assert len(found["devices"]) == torch.cuda.device_count()
    assert 1 <= found["cores"] <= (os.cpu_count() or 1)
    memory = found["memory"]
    assert 0 < memory["free_bytes"] <= memory["total_bytes"]
    assert memory["total_bytes"] <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert found["disk_free_bytes"] > 0
    assert found["python"] in shown(found)
    assert advice(found)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise RuntimeError('no GPU build [of torch]\\nmore')", "RuntimeError: no GPU build [of torch]"),
        ("raise AttributeError", "AttributeError: no message"),
        (
            "import a_module_that_is_nowhere",
            "ModuleNotFoundError: No module named 'a_module_that_is_nowhere'",
        ),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
@pytest.mark.parametrize("name", ["xfuser", "ray", "distvae"])
def test_a_package_that_fails_at_import_is_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, body: str, reason: str
) -> None:
    (tmp_path / f"{name}.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    found = inspect_machine()
    assert found[name] == {"available": False, "version": None, "reason": reason}
    assert reason in shown(found)


def test_a_package_that_imports_has_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ray.py").write_text("__version__ = '2.60.0'")
    (tmp_path / "xfuser").mkdir()  # only a folder of that name, as a checkout next to it leaves
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("ray", "xfuser"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = inspect_machine()
    monkeypatch.delitem(sys.modules, "ray")
    assert found["ray"] == {"available": True, "version": "2.60.0", "reason": None}
    assert found["xfuser"]["reason"] == "not installed"


def nvml(driver: Any) -> ModuleType:
    module = ModuleType("pynvml")

    def init() -> None:
        if isinstance(driver, Exception):
            raise driver

    vars(module).update(nvmlInit=init, nvmlSystemGetDriverVersion=lambda: driver, nvmlShutdown=lambda: None)
    return module


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (None, {"available": False, "driver": None, "reason": "nvidia-ml-py is not installed"}),
        (
            nvml(RuntimeError("NVML Shared Library Not Found")),
            {"available": False, "driver": None, "reason": "RuntimeError: NVML Shared Library Not Found"},
        ),
        (nvml("570.1"), {"available": True, "driver": "570.1", "reason": None}),
        (nvml(b"570.1"), {"available": True, "driver": "570.1", "reason": None}),
    ],
)
def test_nvml(monkeypatch: pytest.MonkeyPatch, module: Any, expected: dict[str, Any]) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert inspect_machine()["nvml"] == expected


def test_a_driver_that_fails_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise RuntimeError("driver too old")

    monkeypatch.setattr(torch.cuda, "device_count", fail)
    found = inspect_machine()
    assert found["devices"] == []
    assert found["torch"]["reason"] == "RuntimeError: driver too old"
    assert "driver too old" in shown(found)


def test_advice_without_a_gpu() -> None:
    assert advice(facts())[0] == "No GPU: wan-tiny runs here on the CPU."
    assert "60 GiB are free: enough, but it is slow" in told()
    assert "8 GiB are free: too little" in told(memory={"total_bytes": 16 * GIB, "free_bytes": 8 * GIB})
    assert "slow on a CPU" in told(memory={"total_bytes": None, "free_bytes": None})
    assert "sees no GPU" in told(nvml={"available": True, "driver": "570.1", "reason": None})


def test_the_calculated_sizes() -> None:
    """14B: 0.8192 MB of K/V per token and branch, 32,760 tokens, two branches."""
    cache = 819_200 * 32_760 * 2
    assert f"K/V cache {cache / GIB:.0f} GiB" in told(gpus=1)


@pytest.mark.parametrize(
    ("gib", "verdict"),
    [
        (139.8, "should fit with its cache"),  # 65 published + 50 of cache
        (79.3, "should fit, but only without a K/V cache"),
        (44, "does not fit"),
    ],
)
def test_whether_14b_fits(gib: float, verdict: str) -> None:
    (line,) = [line for line in advice(facts(1, gib)) if line.startswith("Wan2.1-14B")]
    assert verdict in line
    assert "65.0 GB published" in line


def test_several_gpus_are_not_promised() -> None:
    assert "--nproc 2` makes one video on all of them" in told(gpus=2)
    assert "--nproc" not in told(gpus=1)


def test_what_is_missing_is_said_and_only_then() -> None:
    complete = told(gpus=2)
    for words, changed in {
        "No NVML": {"nvml": {"available": False, "driver": None, "reason": "no driver"}},
        "Ampere": {"devices": [{"name": "T4", "memory_bytes": 15 * GIB, "capability": "7.5"}] * 2},
    }.items():
        assert words not in complete
        assert words in told(gpus=2, **changed)


def test_the_table_groups_equal_gpus() -> None:
    assert "8 x NVIDIA Test, 80 GiB, capability 9.0" in shown(facts(8))
    assert "driver 570.1" in shown(facts(8))


def test_attention_on_this_machine() -> None:
    """Every backend has a line, with a reason where it cannot be used here."""
    found = inspect_machine()["attention"]
    rows = {row["name"]: row for row in found["backends"]}
    assert {"torch", "cudnn", "flash3", "flash4", "xfuser:SAGE", "xfuser:AITER"} <= set(rows)
    assert rows["torch"] == {"name": "torch", "reason": None, "exact": True, "kv": True}
    if not torch.cuda.is_available():
        assert found["auto"] == "torch"
        assert rows["cudnn"]["reason"] == "it needs a GPU"


def test_attention_is_grouped_by_what_is_said() -> None:
    packages = {"xfuser.core.distributed.attention_backend": "", "sageattention": "", "aiter": ""}
    hopper = Facts(
        "nvidia", (9, 0), lambda name: packages.get(name, f"{name} is not installed"), lambda *_: ""
    )
    text = shown(facts(1, attention=survey(hopper)))
    for line in (
        "auto takes cudnn",
        "torch, cudnn, xfuser:SDPA_EFFICIENT, xfuser:SDPA_FLASH, xfuser:CUDNN: yes",
        "xfuser:SDPA, xfuser:SDPA_MATH: yes, not with kv > 1, since it gives no log-sums",
        "xfuser:SAGE: yes, by name only, since it rounds to 8 bits or fewer",
        "flash3, xfuser:FLASH_3, xfuser:FLASH_3_FP8: no: flash_attn_interface is not installed",
        "no: it needs an AMD GPU",
        "xfuser:FLASH_4_FP4: no: it needs a GPU of capability 10.x, and this one has 9.0",
    ):
        assert line in text, line
