"""Attention kernels, and the self-attention that spans ranks."""

from jano_dist.attention.backends import kernel_for
from jano_dist.attention.kernels import Kernel

__all__ = ["Kernel", "kernel_for"]
