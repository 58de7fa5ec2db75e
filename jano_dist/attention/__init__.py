"""Attention kernels, and later the attention that spans ranks."""
