"""Measurements that users run on their own model and machines, started by `jano-dist bench`."""
