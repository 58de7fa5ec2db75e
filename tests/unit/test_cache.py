"""Rows that are kept come back: exactly, or as exactly as 8 bits are; and take the bytes they should."""

import math
from itertools import product

import pytest
import torch

from jano_dist.cache import CacheSizes, Keeping, make_caches
from jano_dist.cache.rows import Workspace, in_turn
from jano_dist.tokens.plan import TokenPlan
from jano_dist.tokens.schedule import StepKind

CPU = torch.device("cpu")
KEEPINGS = [Keeping(*each) for each in product(("native", "fp8"), ("accelerator", "cpu"))]
N, H, D = 23, 3, 8
every_keeping = pytest.mark.parametrize("keeping", KEEPINGS, ids="-".join)


def random(seed, rows, scale=1.0):
    return scale * torch.randn(rows, H, D, generator=torch.Generator().manual_seed(seed))


def assert_kept(got, given, keeping):
    """e4m3 has 3 bits of mantissa: half a step is 1/16 of the value; below 2**-6 steps are even.

    bfloat16 has 7: scale and product are off by 2**-9 each.
    """
    assert got.dtype == given.dtype
    if keeping.dtype == "native":
        assert torch.equal(got, given)
    else:
        rounding = 1 / 16 + (2 * 2**-9 if given.dtype == torch.bfloat16 else 0)
        got, given = got.double(), given.double()
        scale = given.abs().amax(-1, keepdim=True) / 448
        assert ((got - given).abs() <= given.abs() * rounding * 1.01 + scale * 2**-10 + 1e-12).all()


@every_keeping
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e4])
def test_fresh_rows_as_given_and_skipped_rows_as_kept(keeping, scale, dtype):
    (store,) = in_turn(1, Workspace(2, (N, H, D), dtype, CPU, keeping))
    k, v = random(0, N, scale).to(dtype), random(1, N, scale).to(dtype)
    k[3] = 0  # a row of zeros
    whole = store.put((k, v), ((0, 0, N),))
    assert torch.equal(whole[0], k)
    assert torch.equal(whole[1], v)
    fresh = random(2, 5, scale).to(dtype), random(3, 5, scale).to(dtype)
    whole = store.put(fresh, ((0, 0, 5),))
    for got, new, old in zip(whole, fresh, (k, v), strict=True):
        assert torch.equal(got[:5], new)
        assert_kept(got[5:], old[5:], keeping)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eight_bits_are_the_nearest_of_e4m3(dtype):
    """Written down a second time in plain floats: sign, 4 bits of exponent from -6 on, 3 of mantissa."""
    (store,) = in_turn(1, Workspace(1, (N, H, D), dtype, CPU, Keeping("fp8")))
    rows = random(4, N).to(dtype)
    store.put((rows,), ((0, 0, N),))
    (whole,) = store.put((rows[:1],), ((0, 0, 1),))
    for row, kept in zip(rows[1:].flatten(0, 1).tolist(), whole[1:].flatten(0, 1).tolist(), strict=True):
        scale = max(map(abs, row)) / 448
        for value, got in zip(row, kept, strict=True):
            step = 2.0 ** (max(-6, math.floor(math.log2(abs(value) / scale))) - 3)
            off = abs(got - round(value / scale / step) * step * scale)
            assert off <= abs(value) * (2**-7 if dtype == torch.bfloat16 else 1e-5)


@every_keeping
def test_layers_and_branches_in_one_workspace_never_see_each_others_rows(keeping):
    sizes = CacheSizes(layers=4, tokens=N, shard_tokens=N, heads=H, shard_heads=H, head_dim=D)
    caches, _ = make_caches("kv", keeping, sizes, 2, torch.float32, CPU)
    latest = {}
    for step, rows in enumerate((N, 4, 9, 4, N, 4)):
        for b, cache in enumerate(caches):
            for place, layer in enumerate(cache.layers):
                fresh = random(1000 * step + 10 * b + place, rows), random(7 + 1000 * step + b, rows)
                whole = layer.update(*fresh, ((0, 0, rows),))
                old = latest.get((b, place), fresh)
                for got, new, before in zip(whole, fresh, old, strict=True):
                    assert torch.equal(got[:rows], new)
                    assert_kept(got[rows:], before[rows:], keeping)
                latest[b, place] = [
                    torch.cat((new, before[rows:])) for new, before in zip(fresh, old, strict=True)
                ]


@every_keeping
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_dealt_rows_go_where_they_lie_in_every_step(keeping, ranks):
    """A token's row is found at the same place after any sequence of steps."""
    levels = torch.randint(1, 4, (N,), generator=torch.Generator().manual_seed(5)).to(torch.uint8)
    plan = TokenPlan.from_levels(levels)
    (store,) = in_turn(1, Workspace(1, (N, H, D), torch.float32, CPU, keeping))
    kinds = [StepKind.REFRESH, StepKind.ACTIVE, StepKind.MODERATE, StepKind.ACTIVE, StepKind.REFRESH]
    place, current = {}, {}
    for step, kind in enumerate(kinds):
        deal = plan.deal(kind, ranks)
        rows = random(step, N)[deal.rows]
        (whole,) = store.put((rows,), deal.moves[0])
        for source, target, length in deal.moves[0]:
            for offset in range(length):
                token = int(deal.rows[source + offset])
                assert place.setdefault(token, target + offset) == target + offset
                current[token] = rows[source + offset]
        for token, row in current.items():
            fresh = token in deal.rows.tolist()
            assert_kept(whole[place[token]][None], row[None], Keeping() if fresh else keeping)
    assert sorted(place.values()) == list(range(N))


@every_keeping
def test_hidden_states(keeping):
    sizes = CacheSizes(layers=2, tokens=N, shard_tokens=N, heads=H, shard_heads=H, head_dim=D)
    (cache,), _ = make_caches("hidden", keeping, sizes, 1, torch.float32, CPU)
    assert cache.projects_all
    x, rope = random(0, N).flatten(1), (torch.rand(N, 1, D), torch.rand(N, 1, D))
    layer = cache.layers[0]
    got, ropes = layer.inputs(x, rope)
    assert torch.equal(got, x)
    fresh = random(1, 6).flatten(1)
    got, ropes = layer.inputs(fresh, (rope[0][:6], rope[1][:6]))
    assert torch.equal(got[:6], fresh)
    assert_kept(got[6:].view(-1, H, D), x[6:].view(-1, H, D), keeping)
    assert all(torch.equal(one, other) for one, other in zip(ropes, rope, strict=True))


@every_keeping
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes(keeping, dtype):
    """Closed formulas; the account predicts by the same ones."""
    layers, own, shard, heads, mine = 5, 11, 22, 6, 3
    element = 4 if dtype == torch.float32 else 2
    sizes = CacheSizes(layers, own, shard, heads, mine, D)
    for kind, rows, width, tensors in (("kv", shard, mine, 2), ("hidden", own, heads, 1)):
        caches, workspace = make_caches(kind, keeping, sizes, 2, dtype, CPU)
        native = tensors * rows * width * D * element
        kept = native if keeping.dtype == "native" else tensors * rows * width * (D + 4)
        assert [cache.nbytes for cache in caches] == [layers * kept] * 2
        working = (native if keeping.dtype == "fp8" else 0) + (2 * kept if keeping.device == "cpu" else 0)
        assert workspace == working + (2 * own * D * 4 if kind == "hidden" else 0)
