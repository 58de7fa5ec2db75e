"""Attention kernels. Shapes: n queries, N keys, H heads, D head dimension."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(q_nhd: Tensor, k_nhd: Tensor, v_nhd: Tensor) -> Tensor:
    """Plain softmax attention, scale 1/sqrt(D): [n, H, D], [N, H, D], [N, H, D] -> [n, H, D].

    PyTorch picks the kernel (flash attention on the CPU; flash, cuDNN or efficient on GPUs).
    """
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q_nhd, k_nhd, v_nhd))  # [1, H, n or N, D]
    return F.scaled_dot_product_attention(q, k, v).squeeze(0).transpose(0, 1)


def attention_with_lse(q_nhd: Tensor, k_nhd: Tensor, v_nhd: Tensor) -> tuple[Tensor, Tensor]:
    """Attention to some of the keys, and what it takes to merge it with attention to the others.

    Returns:
        The output [n, H, D], and float32 [n, H]: the logarithm of the sum over keys of exp(q k / sqrt(D)).
        Without any key the output is 0 and the logarithm -inf.
    """
    if not len(q_nhd) or not len(k_nhd):
        return torch.zeros_like(q_nhd), q_nhd.new_full(q_nhd.shape[:2], -torch.inf, dtype=torch.float32)
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q_nhd, k_nhd, v_nhd))  # [1, H, n or N, D]
    ops = torch.ops.aten
    if q.device.type == "cpu":
        out, lse = ops._scaled_dot_product_flash_attention_for_cpu(q, k, v)[:2]
    elif q.dtype == torch.float32 or torch.cuda.get_device_capability(q.device) < (8, 0):
        # The flash kernel of GPUs computes in 16 bits only, and needs Ampere.
        out, lse = ops._scaled_dot_product_efficient_attention(q, k, v, None, True)[:2]
    else:
        out, lse = ops._scaled_dot_product_flash_attention(q, k, v)[:2]
    queries = q_nhd.shape[0]  # some kernels pad the logarithms
    return out[0].transpose(0, 1), lse[0, :, :queries].transpose(0, 1).float()


def merge(out: Tensor, lse: Tensor) -> Tensor:
    """Attention to all keys from attention to parts of them: [parts, n, H, D], [parts, n, H] -> [n, H, D].

    Each part weighs exp(lse), taken relative to the largest so that nothing overflows; exact, not an
    approximation (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018). At least
    one part must have seen a key.
    """
    weights = torch.softmax(lse, dim=0).unsqueeze(-1)  # float32
    return (out * weights).sum(0).to(out.dtype)
