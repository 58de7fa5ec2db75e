"""One block of Wan2.1-14B at true width, random weights: 40 heads on 2 and 4 ranks against one process."""

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import WanTransformer3DModel

from jano_dist.attention.distributed import SequenceAttention
from jano_dist.cache import KVCache, NoCache
from jano_dist.mesh import Mesh
from jano_dist.models.wan import WanTransformer
from jano_dist.tokens.plan import TokenPlan
from jano_dist.tokens.schedule import StepKind
from tests.gang.harness import gang

HEADS, HEAD_DIM = 40, 128
# Which of two latents each step sees. The last step attends to what the first latent left behind.
WALK = (("full", 0), ("refresh", 0), ("active", 0), ("active", 1))


def inputs(frames):
    """128 tokens a frame."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 16, frames, 16, 32, generator=generator)
    text = torch.randn(1, 64, 4096, generator=generator)
    levels = torch.randint(0, 4, (frames * 128,), generator=generator).clamp(min=1).to(torch.uint8)
    return latents, torch.tensor(600.0), text, TokenPlan.from_levels(levels)


def block(weights):
    with init_empty_weights():
        model = WanTransformer3DModel(num_layers=1).eval()
    model.load_state_dict(weights, assign=True)
    return model


@torch.inference_mode()
def walk(weights, frames, mesh):
    """Every step's rows of this rank and what came out, [n_r, 64] each; bytes of the cache."""
    latents, timestep, text, plan = inputs(frames)
    ranks, wan = mesh.size("ulysses"), WanTransformer(block(weights))
    branch, results = wan.branch({"text": text}), []
    cache = KVCache(1, plan.tokens, HEADS // ranks, HEAD_DIM, torch.float32, torch.device("cpu"))
    for kind, which in WALK:
        deal = plan.deal(StepKind(kind), ranks)
        own = deal.own(mesh.index("ulysses"))
        attend = SequenceAttention(mesh, deal.counts, deal.counts, deal.moves[0], chunk_rows=4096)
        kept = NoCache(1) if kind == "full" else cache
        results.append((own, wan.forward(latents[which], timestep, branch, own, kept, attend)))
    return results, cache.nbytes


def on_a_rank(weights, frames):
    return walk(weights, frames, Mesh(ulysses=torch.distributed.get_world_size()))


@torch.inference_mode()
def diffusers_rows(weights, frames):
    """diffusers' own forward of the first latent, by token: [N, 64]."""
    latents, timestep, text, plan = inputs(frames)
    velocity = block(weights)(latents[:1], timestep[None], text, return_dict=False)[0][0]
    boxes = velocity.view(16, frames, 8, 2, 16, 2).permute(1, 2, 4, 3, 5, 0)  # tokens, then ph, pw, C
    return boxes.reshape(plan.tokens, 64)


def apart(one, other):
    return float((one - other).abs().max() / other.abs().max())


def random_weights():
    """2.3 GB in memory that all ranks share: of torch's own scale, from a million numbers over and over."""
    with init_empty_weights():
        empty = WanTransformer3DModel(num_layers=1).state_dict()
    bank = torch.rand(2**20 + 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    filled = {name: torch.empty(like.shape).share_memory_() for name, like in empty.items()}
    for name, weight in filled.items():
        scale = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.01
        for part in weight.view(-1).split(len(bank)):
            torch.mul(bank[: len(part)], scale, out=part)
        if "norm" in name and name.endswith("weight"):
            weight.fill_(1)
    return filled


@pytest.fixture(scope="module")
def weights():
    return random_weights()


@pytest.mark.parametrize(
    ("ranks", "frames"),
    [(2, 1), pytest.param(2, 4, marks=pytest.mark.slow), pytest.param(4, 4, marks=pytest.mark.slow)],
)
def test_one_block_on_several_ranks(weights, ranks, frames):
    plain, (alone, cache_bytes) = diffusers_rows(weights, frames), walk(weights, frames, Mesh.single())
    results = gang(ranks, on_a_rank, weights, frames)
    for step, (_, which) in enumerate(WALK):
        rows, wanted = alone[step]
        together = torch.full_like(plain, torch.nan)
        for steps, _ in results:
            own, output = steps[step]
            together[own] = output
        assert sorted(rows.tolist()) == together.isfinite().all(1).nonzero().flatten().tolist()
        assert apart(together[rows], wanted) <= 1e-5
        if which == 0:
            assert apart(together[rows], plain[rows]) <= 1e-5
        else:  # another latent, and so another output
            assert apart(together[rows], plain[rows]) >= 0.1
    for _, nbytes in results:
        assert nbytes == 2 * len(plain) * HEADS // ranks * HEAD_DIM * 4 == cache_bytes // ranks
