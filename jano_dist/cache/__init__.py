"""What skipped tokens leave behind for the tokens that are computed."""

from jano_dist.cache.kv import KVCache, LayerKV, NoCache

__all__ = ["KVCache", "LayerKV", "NoCache"]
