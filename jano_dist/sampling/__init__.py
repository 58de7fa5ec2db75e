"""Guidance and the velocity that skipped tokens keep."""
