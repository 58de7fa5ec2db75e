"""Runnable comparisons; each writes a dated JSON to benchmarks/results/."""
