"""Attention kernels, and the self-attention that spans ranks."""

from jano_dist.attention.backends import find_facts, kernel_for, survey
from jano_dist.attention.kernels import Kernel

__all__ = ["Kernel", "find_facts", "kernel_for", "survey"]
