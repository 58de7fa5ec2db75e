"""Rows that are kept come back: exactly, or as exactly as 8 bits are; and take the bytes they should."""

import math
import weakref
from contextlib import contextmanager
from itertools import product
from unittest import mock

import pytest
import torch

from jano_dist.cache import CacheSizes, Keeping, KVCache, NoCache, make_caches
from jano_dist.cache.rows import Workspace, _Turns, in_turn
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
    x, rope = random(0, N).flatten(1), torch.rand(N, 1, D // 2, dtype=torch.complex64)
    layer = cache.layers[0]
    got, ropes = layer.inputs(x, rope)
    assert torch.equal(got, x)
    fresh = random(1, 6).flatten(1)
    got, ropes = layer.inputs(fresh, rope[:6])
    assert torch.equal(got[:6], fresh)
    assert_kept(got[6:].view(-1, H, D), x[6:].view(-1, H, D), keeping)
    assert torch.equal(ropes, rope)
    later = torch.rand(N, 1, D // 2, dtype=torch.complex64)
    alive = weakref.ref(later)
    layer.inputs(x, later)
    del later
    assert alive() is None  # every forward makes new tables: one is kept, not one per refresh


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
        assert workspace == working + (own * D * 4 if kind == "hidden" else 0)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_chosen_rows_go_where_they_lie_however_scattered(share):
    """Few runs of rows are copied one by one, many by index; a row after the other here."""
    rows = 301
    (store,) = in_turn(1, Workspace(2, (rows, H, D), torch.float32, CPU, Keeping()))
    k, v = random(0, rows), random(1, rows)
    store.put((k, v), ((0, 0, rows),))
    chosen = torch.rand(rows, generator=torch.Generator().manual_seed(2)) < share
    (moves,) = TokenPlan.natural(rows).deal_chosen(chosen, 2).moves
    assert (len(moves) > 32) == (share == 0.5)
    fresh = random(3, int(chosen.sum())), random(4, int(chosen.sum()))
    whole = store.put(fresh, moves)
    for got, new, old in zip(whole, fresh, (k, v), strict=True):
        wanted = old.clone()
        for source, target, length in moves:
            for row in range(length):
                wanted[target + row] = new[source + row]
        assert torch.equal(got, wanted)


def test_no_cache_gives_back_what_it_is_given():
    x, rope = random(0, 5).flatten(1), torch.rand(5, 1, D // 2, dtype=torch.complex64)
    k, v = random(1, 5), random(2, 5)
    cache = NoCache(3)
    assert len(cache.layers) == 3
    assert (cache.nbytes, cache.projects_all) == (0, False)
    for layer in cache.layers:
        assert layer.inputs(x, rope) == (x, rope)
        assert layer.update(k, v, ((0, 0, 5),)) == (k, v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_kv_cache_of_its_own_keeps_rows_as_they_are(dtype):
    with torch.device("meta"):  # where anything made on the default device would be
        cache = KVCache(2, N, H, D, dtype, CPU)
    assert cache.nbytes == 2 * 2 * N * H * D * dtype.itemsize
    k, v = random(0, N).to(dtype), random(1, N).to(dtype)
    for layer in cache.layers:
        layer.update(k, v, ((0, 0, N),))
    for layer in cache.layers:
        got = layer.update(-k[:4], -v[:4], ((0, 0, 4),))
        for all_rows, given in zip(got, (k, v), strict=True):
            assert torch.equal(all_rows, torch.cat((-given[:4], given[4:])))


@every_keeping
@pytest.mark.parametrize("tensors", [1, 2])
def test_buffers_are_where_the_computation_is(keeping, tensors):
    with torch.device("meta"):  # where anything made on the default device would be
        space = Workspace(tensors, (N, H, D), torch.float32, CPU, keeping)
        (store,) = in_turn(1, space)
    for whole in store.put([random(i, N) for i in range(tensors)], ((0, 0, N),)):
        assert whole.device == CPU


@every_keeping
@pytest.mark.parametrize("tensors", [1, 2])
def test_keys_of_a_head_lie_together(keeping, tensors):
    """Where attention reads what is kept as it is; other buffers lie row by row."""
    (store,) = in_turn(1, Workspace(tensors, (N, H, D), torch.float32, CPU, keeping))
    for whole in store.put([random(i, N) for i in range(tensors)], ((0, 0, N),)):
        by_head = tensors == 2 and keeping == Keeping()
        assert whole.transpose(0, 1).is_contiguous() == by_head
        assert whole.is_contiguous() != by_head


@pytest.mark.parametrize("dtype", ["native", "fp8"])
def test_host_memory_sends_each_layers_skipped_rows_once_and_ahead(dtype):
    """Three layers in two sets of buffers: while one is used, the next one's rows come."""
    stores = in_turn(3, Workspace(1, (N, H, D), torch.float32, CPU, Keeping(dtype, "cpu")))
    events = []

    def note(name, call):
        def noted(turns, *arguments):
            layer = next(i for i, store in enumerate(stores) if any(a is store._kept for a in arguments))
            events.append((name, layer, arguments[-1]))
            return call(turns, *arguments)

        return noted

    with (
        mock.patch.object(_Turns, "fetch", note("fetch", _Turns.fetch)),
        mock.patch.object(_Turns, "keep", note("keep", _Turns.keep)),
    ):
        for rows in (N, 4):
            for store in stores:
                store.put([random(rows, rows)], ((0, 0, rows),))
    for rows, step in ((N, events[:6]), (4, events[6:])):
        order = [("fetch", 0), ("fetch", 1), ("keep", 0), ("fetch", 2), ("keep", 1), ("keep", 2)]
        assert step == [(name, layer, rows) for name, layer in order]


class Stream:
    """A made-up CUDA stream that writes down what waits for what."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")


def test_on_a_gpu_copies_are_pinned_and_on_a_stream_of_their_own():
    """The GPU is made up: its tensors lie in host memory."""
    log, pinned, zeros = [], [], torch.zeros
    computing, device = Stream("computing", log), torch.device("cuda", 1)

    def made(*shape, dtype, device, pin_memory=False):
        pinned.append((device.type, pin_memory))
        return zeros(*shape, dtype=dtype)

    def copying(where):
        assert where == device
        return Stream("copying", log)

    @contextmanager
    def on(stream):
        log.append(f"on {stream.name}")
        yield

    with (
        mock.patch.object(torch, "zeros", made),
        mock.patch.multiple(torch.cuda, Stream=copying, stream=on, current_stream=lambda: computing),
    ):
        (store,) = in_turn(1, Workspace(2, (N, H, D), torch.float32, device, Keeping("native", "cpu")))
        assert pinned == [("cuda", False)] * 4 + [("cpu", True)] * 2  # two sets of buffers; what is kept
        in_turn(1, Workspace(1, (N, H, D), torch.float32, device, Keeping()))
        assert pinned[6:] == [("cuda", False)]
        whole = store.put((random(0, N), random(1, N)), ((0, 0, N),))
    copied = ["copying waits for computing", "on copying"]
    assert log == [*copied, "computing waits for copying", *copied]  # there, used, and back
    assert torch.equal(whole[0], random(0, N))
