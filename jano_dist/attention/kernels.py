"""Attention kernels. Shapes: n queries, N keys, H heads, D head dimension."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from jano_dist.errors import RunError

# q [1, H, n, D], k and v [1, H, N, D], and whether log-sums are wanted -> the output [1, H, n, D], and the
# log-sums [1, H, n or more: some kernels pad them], or anything where they are not wanted.
Compute = Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Kernel:
    """Softmax attention with scale 1/sqrt(D), by one of the implementations there are.

    Attributes:
        name: what `attention.backend` calls it.
        compute: it. Never called without queries or without keys.
        exact: whether it rounds no more than its dtype does; not so where it quantizes.
    """

    name: str
    compute: Compute
    exact: bool = True

    @property
    def notes(self) -> list[str]:
        """A sentence where the user should know something of it."""
        inexact = f"attention.backend {self.name} rounds to 8 bits or fewer: the video is not the exact one"
        return [] if self.exact else [inexact]

    def attention(self, q_nhd: Tensor, k_nhd: Tensor, v_nhd: Tensor) -> Tensor:
        """[n, H, D], [N, H, D], [N, H, D] -> [n, H, D]; 0 where there are no keys."""
        if not len(q_nhd) or not len(k_nhd):
            return torch.zeros_like(q_nhd)
        out, _ = self.compute(_batched(q_nhd), _batched(k_nhd), _batched(v_nhd), False)
        return out.squeeze(0).transpose(0, 1)

    def attention_with_lse(self, q_nhd: Tensor, k_nhd: Tensor, v_nhd: Tensor) -> tuple[Tensor, Tensor]:
        """Attention to some of the keys, and what it takes to merge it with attention to the others.

        Returns:
            The output [n, H, D], and float32 [n, H]: the natural logarithm of the sum over keys of
            exp(q k / sqrt(D)). Without any key the output is 0 and the logarithm -inf.

        Raises:
            RunError: the kernel gives something else in place of log-sums.
        """
        if not len(q_nhd) or not len(k_nhd):
            return torch.zeros_like(q_nhd), q_nhd.new_full(q_nhd.shape[:2], -torch.inf, dtype=torch.float32)
        out, lse = self.compute(_batched(q_nhd), _batched(k_nhd), _batched(v_nhd), True)
        queries, heads, _ = q_nhd.shape
        if lse is None or lse.ndim != 3 or lse.shape[1] != heads or lse.shape[2] < queries:
            raise RunError(
                f"attention.backend {self.name} gave no log-sums, by which a mesh with kv > 1 merges its "
                "parts: set it to auto"
            )
        return out.squeeze(0).transpose(0, 1), lse[0, :, :queries].transpose(0, 1).float()


def _batched(x_nhd: Tensor) -> Tensor:
    """[n, H, D] -> [1, H, n, D], which kernels take."""
    return x_nhd.transpose(0, 1).unsqueeze(0)


def by_torch(q: Tensor, k: Tensor, v: Tensor, lse: bool) -> tuple[Tensor, Tensor | None]:
    """See `Compute`. Without log-sums PyTorch picks the kernel (flash attention on the CPU; flash, cuDNN or
    efficient on GPUs)."""
    if not lse:
        return F.scaled_dot_product_attention(q, k, v), None
    ops = torch.ops.aten
    if q.device.type == "cpu":
        out, sums = ops._scaled_dot_product_flash_attention_for_cpu(q, k, v)[:2]
    elif q.dtype == torch.float32 or _before_ampere(q.device):
        # The flash kernel of GPUs computes in 16 bits only, and needs Ampere.
        out, sums = ops._scaled_dot_product_efficient_attention(q, k, v, None, True)[:2]
    else:
        out, sums = ops._scaled_dot_product_flash_attention(q, k, v)[:2]
    return out, sums


def _before_ampere(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)


def by_cudnn(q: Tensor, k: Tensor, v: Tensor, lse: bool) -> tuple[Tensor, Tensor | None]:
    """See `Compute`. cuDNN takes no single key (PyTorch's own `check_cudnn_tensor_shapes` says so)."""
    if k.shape[2] == 1:
        return by_torch(q, k, v, lse)
    out, sums = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, lse)[:2]
    return out, sums.squeeze(-1) if lse else None  # [1, H, n, 1]


TORCH = Kernel("torch", by_torch)


def merge(out: Tensor, lse: Tensor) -> Tensor:
    """Attention to all keys from attention to parts of them: [parts, n, H, D], [parts, n, H] -> [n, H, D].

    Each part weighs exp(lse), taken relative to the largest so that nothing overflows; exact, not an
    approximation (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018). At least
    one part must have seen a key.
    """
    weights = torch.softmax(lse, dim=0).unsqueeze(-1)  # float32
    return (out * weights).sum(0).to(out.dtype)
