"""A GPU that is none: tensors say they lie on `cuda:0`, and what is computed with them is computed here.

An operation on tensors of two devices fails, as on a GPU (where only an index may be the host's, and is
waited for), and so does what takes such a tensor for one of the host's. But the values are a CPU's, so a run
must make what a run on the CPU makes.
"""

import os
import threading
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

HOST, GPU = torch.device("cpu"), torch.device("cuda", 0)
aten = torch.ops.aten
# These copy from one device to another.
_COPIES = {aten._to_copy.default, aten.copy_.default}
_SET_DATA = torch.Tensor.data.__set__
# The host's memory is as it is.
_PINNED = {
    aten.is_pinned.default: lambda tensor: True,
    aten.pin_memory.default: lambda tensor: tensor,
    aten._pin_memory.default: lambda tensor: tensor,
}


def _attention(shape, *rest):
    """A GPU's operator, by the host's: output, log-sums of that kernel's shape, and what nobody looks at."""

    def attend(q, k, v, *given, **options):
        out, sums = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[:2]
        return out, shape(sums), *rest

    return attend


# A GPU's kernels that the host has not.
_KERNELS = {
    aten._scaled_dot_product_efficient_attention.default: _attention(
        lambda sums: F.pad(sums, (0, -sums.shape[-1] % 32)), None, None
    ),
    aten._scaled_dot_product_flash_attention.default: _attention(
        lambda sums: sums, None, None, 0, 0, None, None, None
    ),
    aten._scaled_dot_product_cudnn_attention.default: _attention(
        lambda sums: sums.unsqueeze(-1), None, None, 0, 0, None, None, None
    ),
}


class OnGPU(torch.Tensor):
    """A tensor of the pretended GPU."""

    @staticmethod
    def __new__(cls, here):
        layout = {"strides": here.stride(), "storage_offset": here.storage_offset(), "dtype": here.dtype}
        with torch.inference_mode(here.is_inference()):
            return torch.Tensor._make_wrapper_subclass(cls, here.size(), device=GPU, **layout)

    def __init__(self, here):
        self.here = here

    def record_stream(self, stream):
        return

    def __repr__(self):
        return f"OnGPU({self.here})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


class Dispatch(TorchDispatchMode):
    """Operations that have no tensor to tell where they belong."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


class Functions(TorchFunctionMode):
    """Attention is one operation, or PyTorch would look for a GPU's kernel; and a list takes any tensor."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function == _SET_DATA and any(isinstance(each, OnGPU) for each in args):
            own, other = args
            torch.utils.swap_tensors(own, torch.nn.Parameter(other.detach(), requires_grad=own.requires_grad))
            return None
        if args and isinstance(args[0], OnGPU):
            if function is F.scaled_dot_product_attention:
                given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
                assert all(isinstance(each, OnGPU) for each in given), "attention of two devices"
                return OnGPU(function(*map(_here, args), **tree_map(_here, kwargs or {})))
            if function is torch.Tensor.tolist:
                return args[0].here.tolist()
        return function(*args, **(kwargs or {}))


def run(function, args, kwargs):
    """An operation, here; what it makes lies where a GPU's operation would have made it."""
    if function is aten._has_compatible_shallow_copy_type.default:
        return not any(isinstance(each, OnGPU) for each in args)
    if function in _PINNED:
        return _PINNED[function](args[0])
    if function._can_decompose():  # into others, in inference mode, too
        with Dispatch():
            parts = function.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    there = [each for each in tensors if isinstance(each, OnGPU)]
    asked = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    if there and function not in _COPIES:
        strangers = [each for each in tensors if not isinstance(each, OnGPU) and each.ndim > 0]
        assert not strangers, f"{function}: tensors of two devices"
    kwargs = dict(kwargs)
    if asked is not None and asked.type == "cuda":
        kwargs["device"] = HOST
    if kwargs.get("pin_memory"):
        kwargs["pin_memory"] = False
    known = {id(each.here): each for each in there}
    results = _KERNELS.get(function, function)(*tree_map(_here, args), **tree_map(_here, kwargs))
    if function is aten.copy_.default:
        goes = isinstance(args[0], OnGPU)
    else:
        goes = bool(there) if asked is None else asked.type == "cuda"

    def placed(each):
        if not isinstance(each, torch.Tensor):
            return each
        if id(each) in known:
            return known[id(each)]
        return OnGPU(each) if goes else each

    return tree_map(placed, results)


def _here(each):
    return each.here if isinstance(each, OnGPU) else each


class Stream:
    """Everything on it is done at once."""

    def wait_stream(self, other):
        return

    def synchronize(self):
        return


class Event:
    """Nothing takes any time."""

    def __init__(self, **options):
        return

    def record(self, stream=None):
        return

    def synchronize(self):
        return

    def elapsed_time(self, other):
        return 0.0


def _in_modes(function):
    """Modes are a thread's own."""

    def inside(*args):
        with Dispatch(), Functions():
            function(*args)

    return inside


@contextmanager
def pretended_gpu(monkeypatch):
    """What is asked of CUDA is answered, for one device of an H100's kind."""
    facts = SimpleNamespace(
        name="pretended", uuid=f"GPU-{os.environ.get('RANK', 0)}", total_memory=80 * 2**30, major=9, minor=0
    )
    answers = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 8,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_name": lambda device=None: facts.name,
        "get_device_properties": lambda device=None: facts,
        "get_device_capability": lambda device=None: (facts.major, facts.minor),
        "mem_get_info": lambda device=None: (70 * 2**30, facts.total_memory),
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device=None: None,
        "max_memory_allocated": lambda device=None: 0,
        "Stream": lambda device=None: Stream(),
        "current_stream": lambda device=None: Stream(),
        "stream": lambda stream: nullcontext(),
        "Event": Event,
    }
    torch._C._ensureCUDADeviceGuardSet()  # as for PyTorch's own fake tensors
    with monkeypatch.context() as patched:
        for name, answer in answers.items():
            patched.setattr(torch.cuda, name, answer)
        patched.setattr(threading.Thread, "run", _in_modes(threading.Thread.run))
        # `torch.tensor` of numbers: here first, then there. And `to` gives modules other parameters.
        torch._C._set_only_lift_cpu_tensors(True)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with Dispatch(), Functions():
                yield
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(False)
            torch._C._set_only_lift_cpu_tensors(False)
