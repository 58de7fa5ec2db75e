"""The attention kernel. Shapes: n queries, N keys, H heads, D head dimension."""

import torch.nn.functional as F
from torch import Tensor


def attention(q_nhd: Tensor, k_nhd: Tensor, v_nhd: Tensor) -> Tensor:
    """Plain softmax attention, scale 1/sqrt(D): [n, H, D], [N, H, D], [N, H, D] -> [n, H, D].

    PyTorch picks the kernel (flash attention on the CPU; flash, cuDNN or efficient on GPUs).
    """
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q_nhd, k_nhd, v_nhd))  # [1, H, n or N, D]
    return F.scaled_dot_product_attention(q, k, v).squeeze(0).transpose(0, 1)
