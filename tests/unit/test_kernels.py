"""Attention to parts of the keys, merged, is attention to all of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jano_dist.attention.distributed import attend_locally
from jano_dist.attention.kernels import TORCH, merge
from jano_dist.cache import KVCache, NoCache


def plain(q, k, v):
    """Softmax attention in float64: [n, H, D], [N, H, D] twice -> output [n, H, D], log-sums [n, H]."""
    q, k, v = (x.double() for x in (q, k, v))
    logits = torch.einsum("nhd,mhd->nhm", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("nhm,mhd->nhd", logits.softmax(-1), v), logits.logsumexp(-1)


def random(seed, *shape, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def in_parts(q, k, v, sizes):
    parts = [TORCH.attention_with_lse(q, k, v) for k, v in zip(k.split(sizes), v.split(sizes), strict=True)]
    return merge(*(torch.stack(each) for each in zip(*parts, strict=True)))


@settings(max_examples=60, deadline=None)
@given(
    queries=st.integers(0, 9),
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=7).filter(sum),
    heads=st.integers(1, 4),
    dim=st.sampled_from([8, 16, 32]),
    seed=st.integers(0, 99),
)
def test_merged_parts_are_the_whole(queries, sizes, heads, dim, seed):
    q, k, v = (random(seed + i, n, heads, dim) for i, n in enumerate((queries, sum(sizes), sum(sizes))))
    expected, _ = plain(q, k, v)
    assert torch.allclose(in_parts(q, k, v, sizes).double(), expected, atol=2e-6)
    assert torch.allclose(TORCH.attention(q, k, v).double(), expected, atol=2e-6)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 33), (40, 7)])
def test_log_sums(queries, keys):
    q, k, v = (random(i, n, 3, 16) for i, n in enumerate((queries, keys, keys)))
    out, lse = TORCH.attention_with_lse(q, k, v)
    expected, sums = plain(q, k, v)
    assert lse.dtype == torch.float32
    assert torch.allclose(lse.double(), sums, atol=1e-5)
    assert torch.allclose(out.double(), expected, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_keys_or_queries(dtype):
    q, k = random(0, 3, 2, 8).to(dtype), random(1, 5, 2, 8).to(dtype)
    for queries, keys in ((q, k[:0]), (q[:0], k), (q[:0], k[:0])):
        out, lse = TORCH.attention_with_lse(queries, keys, keys)
        assert (out.dtype, lse.dtype) == (dtype, torch.float32)
        assert (out.shape, lse.shape) == (queries.shape, queries.shape[:2])
        assert (out == 0).all()
        assert (lse == -torch.inf).all()


def test_no_keys_weigh_nothing():
    q, k, v = (random(i, n, 2, 8) for i, n in enumerate((3, 5, 5)))
    out, lse = TORCH.attention_with_lse(q, k[:0], v[:0])
    assert (out == 0).all()
    assert (lse == -torch.inf).all()
    assert torch.allclose(in_parts(q, k, v, [0, 5, 0]).double(), plain(q, k, v)[0], atol=2e-6)


@pytest.mark.parametrize("scale", [30.0, 300.0])
def test_logits_whose_exponentials_overflow(scale):
    """exp(100) is beyond float32; the parts differ by more than that."""
    q, k, v = random(0, 6, 2, 16, scale=scale), random(1, 24, 2, 16, scale=scale), random(2, 24, 2, 16)
    k[12:] *= 0.01  # one part dominates the other
    expected, sums = plain(q, k, v)
    assert sums.abs().max() > 100
    merged = in_parts(q, k, v, [12, 12])
    assert merged.isfinite().all()
    assert torch.allclose(merged.double(), expected, atol=1e-3)


def test_bfloat16():
    q, k, v = (random(i, n, 3, 32).bfloat16() for i, n in enumerate((9, 50, 50)))
    merged = in_parts(q, k, v, [17, 33])
    assert merged.dtype == torch.bfloat16
    assert torch.allclose(merged.double(), plain(q, k, v)[0], atol=0.02)


def test_attention_of_one_process_sees_what_is_kept():
    """Without a cache the rows of the step; with one also those of the step before."""
    q, k, v = (random(i, 7, 3, 16) for i in range(3))
    (layer,) = NoCache(1).layers
    assert torch.allclose(attend_locally(q, k, v, layer).double(), plain(q, k, v)[0], atol=2e-6)
    (layer,) = KVCache(1, 7, 3, 16, torch.float32, torch.device("cpu")).layers
    assert torch.allclose(attend_locally(q, k, v, layer).double(), plain(q, k, v)[0], atol=2e-6)
    fresh = [random(3 + i, 2, 3, 16) for i in range(3)]
    now = [torch.cat((new, old[2:])) for new, old in zip(fresh[1:], (k, v), strict=True)]
    assert torch.allclose(attend_locally(*fresh, layer).double(), plain(fresh[0], *now)[0], atol=2e-6)
