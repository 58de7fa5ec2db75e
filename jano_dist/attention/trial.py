"""A kernel tried out before a run relies on it: a package that imports may have no code for this GPU."""

import torch

from jano_dist.attention.kernels import TORCH, Kernel

_QUERIES, _KEYS, _HEADS = 100, 300, 2  # no multiples of any tile
_BOUNDS = {True: 0.05, False: 0.5}  # of values around 1 in bfloat16; whether the kernel is exact


def try_out(kernel: Kernel, device: torch.device, head_dim: int, *, lse: bool) -> str:
    """What goes wrong when it attends a little, for a sentence; empty where nothing does.

    Args:
        lse: whether its log-sums are looked at, too.
    """
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(rows, _HEADS, head_dim, generator=generator).bfloat16()
        for rows in (_QUERIES, _KEYS, _KEYS)
    )
    try:
        own = [x.to(device) for x in (q, k, v)]
        found = [kernel.attention(*own).cpu()]
        if lse:
            found += [each.cpu() for each in kernel.attention_with_lse(*own)]
    except Exception as problem:
        first = (str(problem).strip() or "no message").splitlines()[0]
        return f"it fails on this device ({type(problem).__name__}: {first})"
    out, sums = TORCH.attention_with_lse(q.float(), k.float(), v.float())
    apart = [
        float((each.float() - wanted).abs().max())
        for each, wanted in zip(found, (out, out, sums), strict=False)
    ]
    if all(each <= _BOUNDS[kernel.exact] for each in apart):  # NaN is not
        return ""
    return f"its results are wrong on this device, by {max(apart):.1g}"
