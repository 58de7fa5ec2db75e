"""Two bodies over the same weights, so that two forwards of a transformer may be under way at once."""

import copy
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

Body = TypeVar("Body")


class Twins(Generic[Body]):
    """An adapter over a transformer and, where it is asked for, another over a copy with the same weights.

    Adapters keep the state of a running forward in hooks and attention processors of their module, so each
    can run one at a time.

    Args:
        make: the adapter over a module. module: a transformer that has no hooks yet.
        two: whether there is a second one.
    """

    def __init__(self, make: Callable[[Any], Body], module: nn.Module, *, two: bool) -> None:
        modules = [module, *([_copy(module)] if two else [])]
        bodies = [make(each) for each in modules]
        self.first = bodies[0]
        self._idle = bodies[::-1]

    def forward(self, *rest: Any, **options: Any) -> Tensor:
        """Of a body that is idle; the first one, unless it is under way."""
        body: Any = self._idle.pop()
        try:
            output: Tensor = body.forward(*rest, **options)
        finally:
            self._idle.append(body)
        return output


def _copy(module: nn.Module) -> nn.Module:
    """Modules of its own around the same parameters and buffers."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    copied: nn.Module = copy.deepcopy(module, shared)
    return copied
