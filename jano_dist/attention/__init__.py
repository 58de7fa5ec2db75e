"""Attention kernels, and the self-attention that spans ranks."""
