"""Pinned host memory, from which a GPU copies while it computes: how much of it PyTorch takes for a tensor.

Its allocator rounds what is asked for up to a power of two and keeps what is given back, so a cache of 14.4
GiB takes 20. From `EXACT_ABOVE` on we have it do neither (`exact_sizes`).
"""

import torch

EXACT_ABOVE = 2**20  # bytes

# Always both. PyTorch 2.13 looks for a block to use again by the power of two above the size alone: of blocks
# that it keeps without having rounded them it would give out one that is too small.
_SETTINGS = "pinned_max_round_threshold_mb:1,pinned_max_cached_size_mb:1"


def pinned_bytes(nbytes: int, *, exact: bool) -> int:
    """What PyTorch takes for a tensor in pinned memory.

    Args:
        exact: what `exact_sizes` says.
    """
    if nbytes == 0 or (exact and nbytes > EXACT_ABOVE):
        return nbytes
    return 1 << (nbytes - 1).bit_length()


def with_exact_sizes(settings: str) -> str:
    """Allocator settings as PYTORCH_ALLOC_CONF holds them, with ours at the end: there they count."""
    if settings.endswith(_SETTINGS):
        return settings
    return f"{settings},{_SETTINGS}" if settings else _SETTINGS


def exact_sizes() -> bool:
    """Have PyTorch neither round nor keep large pinned tensors from now on. False: this PyTorch cannot.

    Not by the environment, which PyTorch has read when a rank is forked from a process that had imported it;
    what the user set there stays.
    """
    if not hasattr(torch._C, "_accelerator_setAllocatorSettings"):
        return False
    given = torch._C._accelerator_getAllocatorSettings()
    wanted = with_exact_sizes(given)
    if wanted == given:
        return True
    try:
        torch._C._accelerator_setAllocatorSettings(wanted)
        return True
    except (RuntimeError, ValueError):  # an older one, that has no such setting
        torch._C._accelerator_setAllocatorSettings(given)
        return False
