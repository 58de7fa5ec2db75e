"""FLOPs by formula against torch's own counter, and against the published figures."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jano_dist.cache import KVCache, NoCache
from jano_dist.models import Geometry

WAN_14B = Geometry(16, 16, (4, 8, 8), (1, 2, 2), 40, 40, 128, 13824, 4096, 256)


@torch.inference_mode()
@pytest.mark.parametrize("computed", [120, 30])
def test_forward_flops_equal_torchs_count(model, computed):
    geometry, tokens = model.geometry, 5 * 6 * 4
    latent, timestep = model.noise((5, 12, 8), seed=0), torch.tensor(500.0)
    branch = model.branch(model.encode(["a red ball"]))
    rows = torch.arange(tokens)
    # All rows of a full step fit the cache; a partial one reads what the full one left.
    cache = KVCache(geometry.layers, tokens, geometry.heads, geometry.head_dim, model.dtype, model.device)
    model.forward(latent, timestep, branch, rows, cache)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.forward(latent, timestep, branch, rows[:computed], cache)
    text_tokens = branch.text.shape[1]
    assert counter.get_total_flops() == geometry.forward_flops(computed, tokens, text_tokens)


@torch.inference_mode()
def test_text_flops_are_what_the_first_forward_does_more(model):
    geometry, rows = model.geometry, torch.arange(5 * 6 * 4)
    latent, timestep = model.noise((5, 12, 8), seed=0), torch.tensor(500.0)
    branch, counts = model.branch(model.encode(["a red ball"])), []
    for _ in range(2):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model.forward(latent, timestep, branch, rows, NoCache(geometry.layers))
        counts.append(counter.get_total_flops())
    assert counts[0] - counts[1] == geometry.text_flops(branch.text.shape[1])


@pytest.mark.parametrize(
    ("tokens", "petaflop", "attention_share"), [(32_760, 1.678, 0.52), (75_600, 6.523, 0.72)]
)
def test_published_cost_of_a_14b_forward(tokens, petaflop, attention_share):
    total = WAN_14B.forward_flops(tokens, tokens, 512)
    attention = 40 * 4 * tokens * tokens * 5120
    assert total == pytest.approx(petaflop * 1e15, rel=0.01)
    assert attention / total == pytest.approx(attention_share, abs=0.01)
