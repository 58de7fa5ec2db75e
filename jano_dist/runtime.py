"""Environment -> device. (Rank, process group and teardown come with the first gang.)"""

import torch

from jano_dist.config import RuntimeConfig
from jano_dist.errors import UserError


def pick_device(config: RuntimeConfig) -> torch.device:
    """The device this process computes on; `auto` takes a CUDA device where there is one.

    Raises:
        UserError: CUDA is asked for and this machine has none.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "runtime.device is cuda but torch sees no CUDA device: run `jano-dist doctor`, or set it to cpu"
        )
    if config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available()):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
