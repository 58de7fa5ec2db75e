"""Where a transformer's weights lie: whole on every rank, sharded over all ranks, or in host memory.

However they lie, they are read once per node: the node's first rank reads the files, the others start from
a skeleton without memory and receive tensor by tensor.

    for each block, and then for what is left:
        read or receive -> [fsdp: keep this rank's share]

So on the device no rank ever holds more than its own weights and one block. In host memory the rank that
reads holds the whole transformer meanwhile, since diffusers reads files whole. Offloaded weights lie in
pinned memory, put there one by one: diffusers, which would pin all of them before it lets go of the first,
finds them pinned and leaves them there.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from jano_dist.mesh import Mesh
from jano_dist.pinned import exact_sizes

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # sent by their index
_CPU = torch.device("cpu")


def place(read: Callable[[], Any], skeleton: Any, *, weights: str, mesh: Mesh, device: torch.device) -> Any:
    """Read a transformer and put its weights where they are to lie. All ranks call it together.

    Args:
        read: loads it whole into host memory. Called on the first rank of every node.
        skeleton: the same model made from its config on the `meta` device; filled on the other ranks.
        weights: `replicated`: whole on `device`. `fsdp`: every tensor cut over all ranks of the mesh; a
            block is gathered while it runs, so all ranks must run the same forwards (whole on one rank).
            `group_offload`: whole in host memory, once per rank; a block lies on `device` while it runs.
        mesh: the ranks.
        device: what computes.

    Returns:
        The transformer in evaluation mode, with the dtypes that `read` gave.

    Raises:
        PeerLost: another rank is gone.
    """
    module = read() if mesh.is_node_lead else skeleton
    module.eval().requires_grad_(False)
    home = _CPU if weights == "group_offload" else device
    pinned = home != device and device.type == "cuda"
    if pinned:
        exact_sizes()
    ranks = None
    if weights == "fsdp" and mesh.world > 1:
        ranks = DeviceMesh.from_group(mesh.world_group, device.type)
    parts = _parts(module)
    dtypes = iter(_agreed_dtypes(parts, mesh))
    for part, owners in parts:
        for owner, name, tensor in _tensors(owners):
            _put(owner, name, _received(tensor, _empty(tensor, next(dtypes), home, pinned), mesh))
        if ranks is not None:
            # Weights of different dtypes may lie together because none of them has a gradient.
            fully_shard(part, mesh=ranks, reshard_after_forward=True)
    if weights == "group_offload":
        _offload(module, device)
    mesh.take_traffic()  # loading is no part of the first step
    return module


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """A transformer's blocks, in order: what its lists of modules hold."""
    lists = [child for child in module.children() if isinstance(child, nn.ModuleList)]
    return [block for each in lists for block in each]


def _parts(module: Any) -> list[tuple[nn.Module, list[nn.Module]]]:
    """The blocks and the root, each with its modules that no part before it has."""
    seen: set[nn.Module] = set()
    parts = []
    for part in (*repeated_blocks(module), module):
        owners = [owner for owner in part.modules() if owner not in seen]
        seen.update(owners)
        parts.append((part, owners))
    return parts


def _tensors(owners: list[nn.Module]) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Parameters and buffers, also those that no file holds, such as the rotary tables."""
    for owner in owners:
        for name, tensor in (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)):
            yield owner, name, tensor


def _agreed_dtypes(parts: list[tuple[nn.Module, list[nn.Module]]], mesh: Mesh) -> list[torch.dtype]:
    """Each tensor's dtype on the rank that read it: diffusers keeps some modules in float32.

    The first thing that is sent, and a CPU tensor: so the others wait for the reading in a collective that
    notices at once when the reading rank ends.
    """
    own = [_DTYPES.index(tensor.dtype) for _, owners in parts for _, _, tensor in _tensors(owners)]
    return [_DTYPES[index] for index in mesh.broadcast_in_node(torch.tensor(own)).tolist()]


def _received(tensor: Tensor, own: Tensor, mesh: Mesh) -> Tensor:
    """A tensor as the node's first rank read it, in `own`.

    A copy also where it is there already: on the CPU diffusers leaves it in the mapped file, at any address,
    and products with unaligned weights differ in the last bits from those of other ranks.
    """
    return mesh.broadcast_in_node(own if tensor.is_meta else own.copy_(tensor.detach()))


def _empty(like: Tensor, dtype: torch.dtype, home: torch.device, pinned: bool) -> Tensor:
    return torch.empty(like.shape, dtype=dtype, device=home, pin_memory=pinned)


def _put(owner: nn.Module, name: str, value: Tensor) -> None:
    is_buffer = name in dict(owner.named_buffers(recurse=False))
    setattr(owner, name, value if is_buffer else nn.Parameter(value, requires_grad=False))


def _offload(module: Any, device: torch.device) -> None:
    streams = device.type == "cuda"  # fetch the next block while this one runs
    module.enable_group_offload(
        onload_device=device,
        offload_device=_CPU,
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=streams,
        record_stream=streams,
    )
