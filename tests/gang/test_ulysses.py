"""Self-attention over several ranks, by heads (Ulysses) and by resident keys and values (kv), against plain
softmax attention in one process, in float64.
"""

import math

import pytest
import torch

from jano_dist.attention.distributed import SequenceAttention
from jano_dist.cache import KVCache, NoCache
from jano_dist.mesh import Mesh
from jano_dist.tokens.plan import TokenPlan
from jano_dist.tokens.schedule import StepKind
from tests.gang.harness import gang

HEADS, HEAD_DIM = 12, 8
TOLERANCE = 2e-6  # of outputs of size 1 to 4, in float32
# A refresh first; then every kind after every other, and full steps in between.
WALK = (
    "full",
    "refresh",
    "active",
    "moderate",
    "active",
    "full",
    "active",
    "refresh",
    "moderate",
    "moderate",
)
LOWEST = {"full": 1, "refresh": 1, "moderate": 2, "active": 3}

# (active, moderate, static) tokens that the random cases may not happen upon.
EDGES = {
    "even": (12, 12, 12),
    "uneven": (7, 11, 13),
    "one token": (1, 0, 0),
    "all static": (0, 0, 17),
    "all moderate": (0, 17, 0),
    "nothing active": (0, 5, 8),
    "nothing moderate": (5, 0, 8),
    "fewer active than ranks": (1, 9, 9),
    "fewer of each than ranks": (1, 1, 1),
}


def random_case(seed):
    """A map of 1 to 60 tokens with random shares of the levels, in random order."""
    generator = torch.Generator().manual_seed(seed)
    tokens = int(torch.randint(1, 61, (), generator=generator))
    shares = torch.rand(3, generator=generator) ** 3 + 1e-6
    return torch.multinomial(shares, tokens, replacement=True, generator=generator).to(torch.uint8) + 1


def edge_case(active, moderate, static):
    levels = torch.tensor([3] * active + [2] * moderate + [1] * static, dtype=torch.uint8)
    return levels[torch.randperm(len(levels), generator=torch.Generator().manual_seed(7))]


def softmax_attention(q_nhd, k_nhd, v_nhd):
    q, k, v = (x.double() for x in (q_nhd, k_nhd, v_nhd))
    weights = (torch.einsum("nhd,mhd->hnm", q, k) / math.sqrt(q.shape[-1])).softmax(-1)
    return torch.einsum("hnm,mhd->nhd", weights, v)


class Plain:
    """The method in one process: the last key and value of every token, in natural order."""

    def __init__(self, levels):
        self.levels, self.kept = levels, None

    def step(self, kind, q_nhd, k_nhd, v_nhd):
        """[N, H, D] -> [N, H, D]; only rows that the kind computes mean something."""
        if kind == "full":
            return softmax_attention(q_nhd, k_nhd, v_nhd)
        computed = (self.levels >= LOWEST[kind])[:, None, None]
        old_k, old_v = self.kept or (k_nhd, v_nhd)
        self.kept = torch.where(computed, k_nhd, old_k), torch.where(computed, v_nhd, old_v)
        return softmax_attention(q_nhd, *self.kept)


class Recorded(Mesh):
    """Notes the bytes of every single exchange, and along which dimension it was."""

    def _exchange(self, rows, sent, received, dim, **when):
        self.take_traffic()
        begun = super()._exchange(rows, sent, received, dim, **when)
        self.exchanges.append((dim, self.take_traffic().nbytes))
        return begun


def exchange_bytes(mesh, counts, heads):
    """What this rank sends along each dimension that has more than one rank, and in how many exchanges.

    Ulysses: q, k and v of the own rows to the others of the shard; then their rows of the own heads back.
    Resident: the shard's queries of the own heads to the other shards; then their rows' outputs of the
    own heads back, each with one float32 logarithm.
    """
    shards, ranks = mesh.size("kv"), mesh.size("ulysses")
    by_shard = [counts[shard * ranks : (shard + 1) * ranks] for shard in range(shards)]
    own_shard, own_heads = by_shard[mesh.index("kv")], heads // ranks
    own, shard, everyone = own_shard[mesh.index("ulysses")], sum(own_shard), sum(counts)
    row = own_heads * HEAD_DIM * 4
    expected = {}
    if ranks > 1:
        expected["ulysses"] = [3 * own * (ranks - 1) * row, (shard - own) * row]
    if shards > 1:
        expected["kv"] = [shard * (shards - 1) * row, (everyone - shard) * (row + own_heads * 4)]
    return expected


def walk(mesh, levels, seed, heads=HEADS, chunk_rows=4096):
    """The whole walk for one map: the largest difference of the own rows, and how many there were."""
    generator = torch.Generator().manual_seed(1000 + seed)
    shards, ranks = mesh.size("kv"), mesh.size("ulysses")
    plan, plain = TokenPlan.from_levels(levels), Plain(levels)
    kept_here = sum(place % (shards * ranks) // ranks == mesh.index("kv") for place in range(len(levels)))
    cache = KVCache(1, kept_here, heads // ranks, HEAD_DIM, torch.float32, torch.device("cpu"))
    worst, own_counts = 0.0, []
    for kind in WALK:
        qkv = [torch.randn(len(levels), heads, HEAD_DIM, generator=generator) for _ in range(3)]
        wanted = plain.step(kind, *qkv)
        deal = plan.deal(StepKind(kind), shards * ranks, shards)
        own = deal.own(mesh.index("sequence"))
        (layer,) = (NoCache(1) if kind == "full" else cache).layers
        mesh.exchanges = []
        rows = [x[own] for x in qkv]
        before = [x.clone() for x in rows]
        moves = deal.moves[mesh.index("kv")]
        attend = SequenceAttention(mesh, deal.counts, deal.counts, moves, chunk_rows=chunk_rows)
        output = attend(*rows, layer)
        assert output.shape == (len(own), heads, HEAD_DIM)
        assert all(torch.equal(x, same) for x, same in zip(rows, before, strict=True))
        if len(own):
            worst = max(worst, float((output - wanted[own]).abs().max()))
        expected = exchange_bytes(mesh, deal.counts, heads)
        for dim, nbytes in expected.items():
            sent = [one for name, one in mesh.exchanges if name == dim]
            chunks = max(1, math.ceil(sum(deal.counts) / chunk_rows)) if dim == "kv" else 1
            assert len(sent) == 2 * chunks
            assert [sum(sent[:chunks]), sum(sent[chunks:])] == nbytes
        assert {dim for dim, nbytes in mesh.exchanges if nbytes} <= set(expected)
        own_counts.append(len(own))
    return worst, own_counts


def walks(degrees, levels_and_seeds, heads, chunk_rows):
    mesh = Recorded(**degrees)
    return [walk(mesh, levels, seed, heads, chunk_rows) for levels, seed in levels_and_seeds]


def largest_difference(degrees, cases, heads=HEADS, chunk_rows=4096):
    """Of all rows, cases and ranks; on the way, that the ranks of a branch compute what the kind says."""
    results = gang(math.prod(degrees.values()), walks, degrees, cases, heads, chunk_rows)
    sequence = degrees.get("kv", 1) * degrees.get("ulysses", 1)
    for case, (levels, _) in enumerate(cases):
        for step, kind in enumerate(WALK):
            computed = [rank[case][1][step] for rank in results[:sequence]]
            assert sum(computed) == int((levels >= LOWEST[kind]).sum())
            assert max(computed) - min(computed) <= 1
    return max(difference for rank in results for difference, _ in rank)


def random_cases(seeds):
    return [(random_case(seed), seed) for seed in seeds]


def edge_cases():
    return [(edge_case(*sizes), seed) for seed, sizes in enumerate(EDGES.values())]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6])
def test_random_maps(ranks):
    assert largest_difference({"ulysses": ranks}, random_cases(range(15))) <= TOLERANCE


@pytest.mark.parametrize("ranks", [2, 3, 4, 6])
def test_maps_on_the_edge(ranks):
    assert largest_difference({"ulysses": ranks}, edge_cases()) <= TOLERANCE


@pytest.mark.parametrize(
    ("shards", "ranks"),
    [
        (2, 1),
        (2, 2),
        (5, 1),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((3, 1), (2, 3), (3, 2))),
    ],
)
def test_resident_keys_and_values(shards, ranks):
    """Two shards and more, also of ranks that do not divide the heads, also of no token at all."""
    cases = [*random_cases(range(50, 60)), *edge_cases()]
    assert largest_difference({"kv": shards, "ulysses": ranks}, cases) <= TOLERANCE


@pytest.mark.parametrize("chunk_rows", [7, *(pytest.param(rows, marks=pytest.mark.slow) for rows in (1, 16))])
def test_queries_in_chunks(chunk_rows):
    cases = [*random_cases(range(60, 63)), *edge_cases()]
    assert largest_difference({"kv": 2, "ulysses": 2}, cases, chunk_rows=chunk_rows) <= TOLERANCE


@pytest.mark.parametrize("degrees", [{"cfg": 2, "ulysses": 2}, {"cfg": 2, "kv": 2}])
def test_inside_a_branch(degrees):
    """Each half of the mesh is a sequence of its own."""
    assert largest_difference(degrees, random_cases(range(30, 40))) <= TOLERANCE


def test_one_head_per_rank():
    assert largest_difference({"ulysses": 6}, random_cases([5]), heads=6) <= TOLERANCE


def test_the_reference_by_hand():
    """Two tokens, one head: weights 1 : e**(1 / sqrt(2)) by the formula, then a kept key and value."""
    q = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]])
    k = torch.tensor([[[0.0, 0.0]], [[1.0, 5.0]]])
    v = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    plain, e = Plain(torch.tensor([3, 1])), math.exp(1 / math.sqrt(2))
    wanted = [1 / (1 + e), e / (1 + e)]
    assert plain.step("refresh", q, k, v)[0, 0].tolist() == pytest.approx(wanted)
    # An active step: token 0 brings a new value, token 1 keeps its old key and value.
    assert plain.step("active", q, k, 10 * v)[0, 0].tolist() == pytest.approx([10 * wanted[0], wanted[1]])
    assert plain.step("full", q, k, 10 * v)[0, 0].tolist() == pytest.approx([10 * x for x in wanted])
