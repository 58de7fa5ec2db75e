"""The blocks of a transformer as kernels that PyTorch writes for them."""

from importlib.util import find_spec

import torch
from torch import nn

from jano_dist.errors import UserError
from jano_dist.models.placement import repeated_blocks


def check_compiler(device: torch.device) -> None:
    """Make sure that there is what the kernels are compiled with; PyTorch looks for it in the first step.

    Raises:
        UserError: there is not.
    """
    if device.type == "cuda":
        if find_spec("triton") is None:
            raise UserError("model.compile needs triton, which is not installed: set it to false")
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise UserError(
            "model.compile needs a C++ compiler, and there is none: install g++, or set it to false"
        ) from error


def compile_blocks(transformer: nn.Module) -> None:
    """Compile the blocks at their first call, when hooks and processors are in; all of them together, and for
    any number of rows."""
    for block in repeated_blocks(transformer):
        block.compile(dynamic=True)
