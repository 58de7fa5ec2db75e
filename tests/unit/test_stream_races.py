"""The cache in host memory on a GPU: copies run beside the computation, and only what waits for a stream is
safe from it. Emulated: whatever the waits allow may happen, in any order.

All operations are noted first, each after those of its own stream and after those that its stream waits for,
and then done in a random order that respects just that.
"""

import random
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from jano_dist.cache import rows as rows_module
from jano_dist.cache.rows import Keeping, Workspace, in_turn

LAYERS, N, H, D = 4, 12, 2, 3
STEPS = [N, 5, 8, N, 3, 5]  # rows computed


class Stream:
    """Operations in order; each has to wait for the one before, and for what the stream waited for."""

    def __init__(self):
        self.last = []

    def wait_stream(self, other):
        self.last = [*self.last, *other.last]


class Replay(TorchDispatchMode):
    """Operations are put off: an operation's result is rubbish until `run`."""

    def __init__(self):
        super().__init__()
        self.current, self._todo = Stream(), []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.is_view:
            return function(*args, **kwargs)
        made = None
        if function._schema.is_mutable:  # in place: its result is its first argument
            result = args[0]
        else:
            result = made = function(*args, **kwargs)
            tree_map_only(torch.Tensor, spoil, made)
        self._todo.append((function, args, kwargs, made, tuple(self.current.last)))
        self.current.last = [len(self._todo) - 1]
        return result

    @contextmanager
    def on(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def run(self, order):
        done, left = set(), list(range(len(self._todo)))
        while left:
            ready = [place for place in left if done.issuperset(self._todo[place][4])]
            place = order.choice(ready)
            function, args, kwargs, made, _ = self._todo[place]
            result = function(*args, **kwargs)
            if made is not None:
                made.copy_(result)
            done.add(place)
            left.remove(place)


def spoil(tensor):
    tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.zero_()


# Keys and values of each layer in each step.
FRESH = torch.randn(len(STEPS), LAYERS, 2, N, H, D, generator=torch.Generator().manual_seed(0))


def attended(space):
    """What attention would read of every layer in every step."""
    stores, seen = in_turn(LAYERS, space), []
    for step, count in enumerate(STEPS):
        for layer, store in enumerate(stores):
            keys, values = store.put(FRESH[step, layer, :, :count].unbind(), ((0, 0, count),))
            seen.append(keys * 2 + values)
    return seen


def workspace(keeping):
    return Workspace(2, (N, H, D), torch.float32, torch.device("cpu"), keeping)


@pytest.mark.parametrize("dtype", ["native", "fp8"])
def test_no_order_that_the_waits_allow_changes_anything(monkeypatch, dtype):
    keeping = Keeping(dtype, "cpu")
    wanted = attended(workspace(keeping))
    for seed in range(40):
        space, replay = workspace(keeping), Replay()
        space.turns._stream = Stream()
        cuda = SimpleNamespace(current_stream=lambda replay=replay: replay.current, stream=replay.on)
        monkeypatch.setattr(rows_module, "torch", SimpleNamespace(**{**vars(torch), "cuda": cuda}))
        with replay:
            seen = attended(space)
        replay.run(random.Random(seed))
        assert all(torch.equal(own, right) for own, right in zip(seen, wanted, strict=True)), seed
