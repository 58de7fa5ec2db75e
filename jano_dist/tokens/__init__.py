"""Pure token logic: which tokens are simple, and which of them a step computes. Imports nothing of ours."""
