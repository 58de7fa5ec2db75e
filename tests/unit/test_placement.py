"""Offloaded weights on a made-up GPU: where they lie, and how many lie there twice."""

import weakref
from unittest import mock

import pytest
import torch
from torch import nn

from jano_dist.mesh import Mesh
from jano_dist.models.placement import place

BLOCKS = 6


class Toy(nn.Module):
    """A transformer as far as placing goes: a list of blocks, something outside, and a buffer."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(BLOCKS))
        self.head = nn.Linear(8, 2)
        self.register_buffer("table", torch.ones(3))
        self.offloaded = []

    def enable_group_offload(self, **settings):
        self.offloaded.append(settings)


def placed(weights, device):
    """The module, its weights as read, which were asked to be pinned, and the most that lay there twice."""
    read, empty = Toy(), torch.empty
    wanted = {name: tensor.detach().clone() for name, tensor in read.state_dict().items()}
    originals = [weakref.ref(tensor) for tensor in (*read.parameters(), *read.buffers())]
    pinned, twice = [], []

    def made(*shape, dtype, device, pin_memory):
        alive = sum(each() is not None for each in originals)
        twice.append(alive + len(pinned) - len(originals))
        pinned.append((device.type, pin_memory))
        return empty(*shape, dtype=dtype)

    with mock.patch.object(torch, "empty", made):
        module = place(lambda: read, None, weights=weights, mesh=Mesh.single(), device=torch.device(device))
    return module, wanted, pinned, twice


@pytest.mark.parametrize(
    ("weights", "device", "kept"),
    [
        ("group_offload", "cuda", ("cpu", True)),
        ("group_offload", "cpu", ("cpu", False)),  # nothing to copy from it beside the computing
        ("replicated", "cuda", ("cuda", False)),
    ],
)
def test_where_weights_lie(weights, device, kept):
    module, wanted, pinned, _ = placed(weights, device)
    assert pinned == [kept] * len(wanted)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, wanted[name])
    assert bool(module.offloaded) == (weights == "group_offload")


def test_no_more_than_one_tensor_lies_there_twice():
    """At the moment when memory for the next is asked for, all before it have been let go of."""
    _, wanted, _, twice = placed("group_offload", "cuda")
    assert len(twice) == len(wanted)
    assert max(twice) <= 1
