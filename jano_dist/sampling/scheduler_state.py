"""What a diffusers scheduler remembers from step to step, taken out and put back: they have no state_dict."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_PLAIN = (bool, int, float, str, type(None))


def scheduler_state(scheduler: Any, prefix: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """All attributes but the config: JSON values, in which `{"tensor": name}` stands for one of the tensors,
    whose names begin with `prefix`.

    Raises:
        TypeError: an attribute that is no tensor, number, text, or list of these.
    """
    tensors: dict[str, Tensor] = {}
    attributes = {key: value for key, value in vars(scheduler).items() if key != "_internal_dict"}
    return {key: _taken(prefix + key, value, tensors) for key, value in attributes.items()}, tensors


def restore_scheduler(
    scheduler: Any, facts: Mapping[str, Any], tensors: Mapping[str, Tensor], device: torch.device
) -> None:
    """Put a `scheduler_state` back into a scheduler that was set to the same steps.

    A tensor goes to where the scheduler has it now (its tables stay on the CPU), else to `device`.
    """
    for key, value in facts.items():
        own = getattr(scheduler, key, None)
        place = own.device if isinstance(own, Tensor) else device
        setattr(scheduler, key, _given(value, tensors, place))


def _taken(name: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, list):
        return [_taken(f"{name}.{index}", each, tensors) for index, each in enumerate(value)]
    if isinstance(value, _PLAIN):
        return value
    raise TypeError(f"the scheduler's {name} is a {type(value).__name__}, which a snapshot cannot hold")


def _given(value: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    if isinstance(value, dict):
        return tensors[value["tensor"]].to(device)
    if isinstance(value, list):
        return [_given(each, tensors, device) for each in value]
    return value
