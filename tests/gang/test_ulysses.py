"""Self-attention over several ranks against plain softmax attention in one process, in float64."""

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
    """Notes the bytes of every single exchange."""

    def all_to_all(self, *args):
        self.take_traffic()
        result = super().all_to_all(*args)
        self.exchanges.append(self.take_traffic().nbytes)
        return result


def exchange_bytes(rank, counts, heads):
    """q, k and v of the own rows to the others, then the others' rows of the own heads back."""
    ranks, own = len(counts), counts[rank]
    row = heads // ranks * HEAD_DIM * 4
    return [3 * own * (ranks - 1) * row, (sum(counts) - own) * row]


def walk(mesh, levels, seed, heads=HEADS):
    """The whole walk for one map: the largest difference of the own rows, and every step's facts."""
    generator = torch.Generator().manual_seed(1000 + seed)
    ranks, tokens = mesh.size("ulysses"), len(levels)
    plan, plain = TokenPlan.from_levels(levels), Plain(levels)
    cache = KVCache(1, tokens, heads // ranks, HEAD_DIM, torch.float32, torch.device("cpu"))
    worst, own_counts = 0.0, []
    for kind in WALK:
        qkv = [torch.randn(tokens, heads, HEAD_DIM, generator=generator) for _ in range(3)]
        wanted = plain.step(kind, *qkv)
        deal = plan.deal(StepKind(kind), ranks)
        own = deal.own(mesh.index("ulysses"))
        (layer,) = (NoCache(1) if kind == "full" else cache).layers
        mesh.exchanges = []
        rows = [x[own] for x in qkv]
        kept = [x.clone() for x in rows]
        output = SequenceAttention(mesh, deal.counts, deal.counts, deal.moves[0])(*rows, layer)
        assert output.shape == (len(own), heads, HEAD_DIM)
        assert all(torch.equal(x, before) for x, before in zip(rows, kept, strict=True))
        if len(own):
            worst = max(worst, float((output - wanted[own]).abs().max()))
        if ranks > 1:
            assert mesh.exchanges == exchange_bytes(mesh.index("ulysses"), deal.counts, heads)
        own_counts.append(len(own))
    return worst, own_counts


def walks(degrees, levels_and_seeds):
    mesh = Recorded(**degrees)
    return [walk(mesh, levels, seed) for levels, seed in levels_and_seeds]


def wide_walk(heads):
    mesh = Recorded(ulysses=heads)
    return walk(mesh, random_case(5), 5, heads)


def run(degrees, cases):
    """Every rank's results; checks on the way that the ranks together compute what the kind says."""
    world = math.prod(degrees.values())
    ranks = gang(world, walks, degrees, cases)
    sequence = degrees["ulysses"]
    for case, (levels, _) in enumerate(cases):
        for step, kind in enumerate(WALK):
            computed = [rank[case][1][step] for rank in ranks[:sequence]]
            assert sum(computed) == int((levels >= LOWEST[kind]).sum())
            assert max(computed) - min(computed) <= 1
    return max(difference for rank in ranks for difference, _ in rank)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6])
def test_random_maps(ranks):
    cases = [(random_case(seed), seed) for seed in range(25)]
    assert run({"ulysses": ranks}, cases) <= TOLERANCE


@pytest.mark.parametrize("ranks", [2, 3, 4, 6])
def test_maps_on_the_edge(ranks):
    cases = [(edge_case(*sizes), seed) for seed, sizes in enumerate(EDGES.values())]
    assert run({"ulysses": ranks}, cases) <= TOLERANCE


def test_inside_a_branch():
    """cfg 2 x ulysses 2: each half of the mesh is a sequence of its own."""
    cases = [(random_case(seed), seed) for seed in range(30, 40)]
    assert run({"cfg": 2, "ulysses": 2}, cases) <= TOLERANCE


def test_one_head_per_rank():
    assert max(difference for difference, _ in gang(6, wide_walk, 6)) <= TOLERANCE


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
