"""Which kernel a run uses: what `attention.backend` asks for, if this device and this model can have it."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from jano_dist.attention.kernels import Compute, Kernel, by_cudnn, by_torch
from jano_dist.attention.trial import try_out
from jano_dist.attention.xfuser_table import AMPERE_ON, XFUSER, Entry
from jano_dist.config import Config
from jano_dist.errors import UserError
from jano_dist.geometry import Geometry

_PREFIX, _REGISTRY = "xfuser:", "xfuser.core.distributed.attention_backend"
_HALF = ("auto", "bfloat16", "float16")


@dataclass(frozen=True)
class Facts:
    """What decides on a kernel.

    Attributes:
        vendor: of the GPU: `nvidia`, `amd`, or empty on a CPU.
        capability: of the GPU; (0, 0) on a CPU.
        missing: why a package cannot be imported; empty where it can. Asked only where it matters.
        trial: what goes wrong when a backend attends with heads of so many dimensions; empty where nothing
            does. Asked last.
    """

    vendor: str
    capability: tuple[int, int]
    missing: Callable[[str], str]
    trial: Callable[["Backend", int], str]


@dataclass(frozen=True)
class Need:
    """What a model asks of a kernel.

    Attributes:
        head_dim: of its heads.
        lse: whether log-sums are needed, as on a mesh with kv > 1.
        dtype: that it computes in; `auto` where that is not known yet.
    """

    head_dim: int
    lse: bool
    dtype: str = "auto"


USUAL = Need(128, lse=True, dtype="bfloat16")


@dataclass(frozen=True)
class Backend:
    """A kernel, where it runs, and how it is made.

    Attributes:
        entry: where it runs and what it gives.
        packages: that must be imported.
        make: called once they are.
    """

    name: str
    entry: Entry
    packages: tuple[str, ...]
    make: Callable[[], Compute]

    def obstacle(self, facts: Facts, need: Need | None = None) -> str:
        """Why it cannot be used, for a sentence; empty where it can.

        Args:
            need: None: for any model.
        """
        return (
            _device_lacks(self.entry, facts)
            or (need and _model_needs(self.entry, need))
            or next(filter(None, map(facts.missing, self.packages)), "")
            or ("" if self.name == "torch" else facts.trial(self, need.head_dim if need else USUAL.head_dim))
        )

    def kernel(self) -> Kernel:
        """The kernel; `obstacle` has found none."""
        return Kernel(self.name, self.make(), self.entry.exact)


def _device_lacks(entry: Entry, facts: Facts) -> str:
    if entry.vendors and not facts.vendor:
        return "it needs a GPU"
    if entry.vendors and facts.vendor not in entry.vendors:
        return "it needs an AMD GPU" if entry.vendors == ("amd",) else "it needs an NVIDIA GPU"
    major, minor = facts.capability
    if facts.vendor == "nvidia" and entry.majors and major not in entry.majors:
        known = ", ".join(f"{each}.x" for each in entry.majors)
        return f"it needs a GPU of capability {known}, and this one has {major}.{minor}"
    return ""


def _model_needs(entry: Entry, need: Need) -> str:
    if entry.half and need.dtype not in _HALF:
        return f"it computes in bfloat16 or float16, not in {need.dtype}"
    if entry.head_dim and (need.head_dim > entry.head_dim or need.head_dim % 8):
        return f"it takes heads of 8, 16, .. {entry.head_dim} dimensions, not of {need.head_dim}"
    if need.lse and not entry.lse:
        return "it gives no log-sums, by which a mesh with kv > 1 merges its parts"
    return ""


def _flash(package: str, option: str) -> Compute:
    """FlashAttention 3 or 4: [1, n, H, D] three times -> output and log-sums [1, H, n], if `option` asks for
    them; older versions always give both."""
    flash = import_module(package).flash_attn_func
    asked = {option: True} if option in signature(flash).parameters else {}

    def compute(q: Tensor, k: Tensor, v: Tensor, lse: bool) -> tuple[Tensor, Tensor | None]:
        out, sums = flash(*(x.transpose(1, 2) for x in (q, k, v)), **asked)
        return out.transpose(1, 2), sums

    return compute


def _of_xfuser(name: str) -> Compute:
    """A function of xfuser's registry: (q, k, v, dropout, causal), [1, H, n, D] as here."""
    module = import_module(_REGISTRY)
    kind = module.AttentionBackendType.__members__.get(name)
    function = module.ATTENTION_FUNCTION_REGISTRY.get(kind)
    if function is None:
        raise UserError(
            f"attention.backend {_PREFIX}{name} is not in this xfuser: install version 0.7 or newer"
        )

    def compute(q: Tensor, k: Tensor, v: Tensor, lse: bool) -> tuple[Tensor, Tensor | None]:
        if name == "CUDNN" and k.shape[2] == 1:  # see `by_cudnn`
            return by_torch(q, k, v, lse)
        out, sums = function(q, k, v, 0.0, False)
        return out, sums

    return compute


_OWN = {
    "torch": Backend("torch", Entry(vendors=(), half=False), (), lambda: by_torch),
    "cudnn": Backend("cudnn", Entry(majors=AMPERE_ON, head_dim=128), (), lambda: by_cudnn),
    "flash3": Backend(
        "flash3",
        Entry(majors=(9,), head_dim=256),
        ("flash_attn_interface",),
        lambda: _flash("flash_attn_interface", "return_attn_probs"),
    ),
    "flash4": Backend(
        "flash4",
        Entry(majors=(9, 10, 11), head_dim=128),
        ("flash_attn.cute.interface",),
        lambda: _flash("flash_attn.cute.interface", "return_lse"),
    ),
}


def backends() -> dict[str, Backend]:
    """Every backend by the name that `attention.backend` takes."""
    others = {
        _PREFIX + name: Backend(
            _PREFIX + name,
            entry,
            (_REGISTRY, *((entry.package,) if entry.package else ())),
            lambda name=name: _of_xfuser(name),  # type: ignore[misc]
        )
        for name, entry in XFUSER.items()
    }
    return {**_OWN, **others}


def automatic(facts: Facts) -> tuple[str, ...]:
    """Names in the order in which `auto` tries them: from Hopper on the fastest exact ones, as published."""
    if facts.capability < (9, 0):
        return ("torch",)
    return ("flash3" if facts.capability < (10, 0) else "flash4", "cudnn", "torch")


def choose(asked: str, facts: Facts, need: Need) -> Kernel:
    """The kernel for `attention.backend`.

    Args:
        asked: `auto`, or a backend's name.

    Raises:
        UserError: there is no such backend, or this device or this model cannot have it.
    """
    known = backends()
    if asked == "auto":
        return next(
            known[name] for name in automatic(facts) if not known[name].obstacle(facts, need)
        ).kernel()
    if asked not in known:
        names = ", ".join(name.removeprefix(_PREFIX) for name in known if name.startswith(_PREFIX))
        raise UserError(
            f"there is no attention.backend {asked}: choose auto, {', '.join(_OWN)}, or {_PREFIX} and one of "
            f"{names}"
        )
    reason = known[asked].obstacle(facts, need)
    if reason:
        raise UserError(f"attention.backend {asked} cannot be used here, because {reason}: set it to auto")
    return known[asked].kernel()


def survey(facts: Facts) -> dict[str, Any]:
    """What a machine could use, ready for JSON.

    Returns:
        `auto`: what it takes for heads of 128 dimensions in bfloat16. `backends`: of each its `name`, why it
        cannot be used (`reason`, None where it can), whether it is `exact`, and whether it runs with kv > 1
        (`kv`).
    """
    known = backends()
    rows = [
        {
            "name": name,
            "reason": backend.obstacle(facts) or None,
            "exact": backend.entry.exact,
            "kv": backend.entry.lse,
        }
        for name, backend in known.items()
    ]
    taken = next(name for name in automatic(facts) if not known[name].obstacle(facts, USUAL))
    return {"auto": taken, "backends": rows}


def kernel_for(
    config: Config, geometry: Geometry, device: torch.device, *, kv: int = 1, dtype: torch.dtype | None = None
) -> Kernel:
    """The kernel of a run's self-attention; PyTorch's, where the model attends by itself.

    Args:
        kv: degree of the mesh, as far as it is known. dtype: of the model, None: as the config says.

    Raises:
        UserError: see `choose`.
    """
    asked = config.attention.backend if geometry.regions else "torch"
    named = config.model.dtype if dtype is None else str(dtype).removeprefix("torch.")
    return choose(asked, find_facts(device), Need(geometry.head_dim, kv > 1, named))


def find_facts(device: torch.device) -> Facts:
    """Of the device that this process computes on."""
    known: dict[str, str] = {}

    def once(package: str) -> str:  # to find that one cannot be imported takes seconds
        if package not in known:
            known[package] = missing(package)
        return known[package]

    def trial(backend: Backend, head_dim: int) -> str:
        return try_out(backend.kernel(), device, head_dim, lse=backend.entry.lse)

    if device.type != "cuda":
        return Facts("", (0, 0), once, trial)
    vendor = "amd" if torch.version.hip else "nvidia"
    return Facts(vendor, torch.cuda.get_device_capability(device), once, trial)


def missing(package: str) -> str:
    """Why a package cannot be imported, for a sentence; empty where it can."""
    top = package.partition(".")[0]
    try:
        if find_spec(top) is None:
            return f"{top} is not installed"
        import_module(package)
    except (Exception, SystemExit) as problem:  # built for another PyTorch, for example
        lacking = getattr(problem, "name", None)
        if isinstance(problem, ModuleNotFoundError) and lacking and package.startswith(lacking):
            return f"{lacking} is not installed"  # a part of it, or all but a folder of that name
        first = (str(problem).strip() or "no message").splitlines()[0]
        return f"{package} cannot be imported ({type(problem).__name__}: {first})"
    return ""
