"""FLOPs by formula against torch's own counter, and against the published figures."""

import json
from itertools import product
from unittest import mock

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jano_dist.cache import KVCache, NoCache
from jano_dist.geometry import WanGeometry
from jano_dist.models.folder import model_folder

WAN_14B = WanGeometry(16, 16, (4, 8, 8), (1, 2, 2), 40, 40, 128, 13824, 4096, 256)


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


def written_out(computed, tokens, text, hidden):
    """FLOPs of one branch, layer by layer, for steps that compute these many tokens; wan-tiny's sizes."""
    sizes = json.loads((model_folder("wan-tiny") / "transformer" / "config.json").read_text())
    heads, layers = sizes["num_attention_heads"], sizes["num_layers"]
    d, patch = heads * sizes["attention_head_dim"], 16 * 1 * 2 * 2
    once = 2 * text * (sizes["text_dim"] * d + d * d) + layers * 2 * (2 * text * d * d)
    total = once
    for n in computed:
        made = tokens if hidden else n  # keys and values
        layer = 2 * (2 * n * d * d) + 2 * (2 * made * d * d) + 2 * (2 * n * tokens * d)  # self-attention
        layer += 2 * (2 * n * d * d) + 2 * (2 * n * text * d)  # cross-attention
        layer += 2 * (2 * n * d * sizes["ffn_dim"])
        time = 2 * (sizes["freq_dim"] * d + d * d + d * 6 * d)
        total += layers * layer + 2 * tokens * patch * d + time + 2 * n * d * patch
    return total


def counted(engine):
    """A generation's record, and torch's count of what its forwards multiplied."""
    forward, totals = engine.model.forward, []

    def call(*arguments):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            rows = forward(*arguments)
        totals.append(counter.get_total_flops())
        return rows

    with mock.patch.object(engine.model, "forward", call):
        return engine.generate("a red ball moves left", seed=1).record, sum(totals)


@pytest.mark.parametrize(
    ("policy", "kind", "guidance"),
    [*product(("full", "jano"), ("kv", "hidden"), (4.0,)), ("jano", "hidden", 1.0)],
)
def test_the_record_is_torchs_count_and_the_written_out_one(engine, policy, kind, guidance):
    """`hidden` makes the keys and values of the skipped tokens again, and that is work done."""
    record, total = counted(engine(policy, {"cache.kind": kind, "sampling.guidance": guidance}))
    computed, tokens = [step["tokens"] for step in record["steps"]], 3 * 6 * 4
    branches, text = (1 if guidance == 1 else 2), 32
    assert record["config"]["model"]["max_sequence_length"] == text
    assert (min(computed) < tokens) == (policy == "jano")
    wanted = branches * written_out(computed, tokens, text, kind == "hidden")
    assert record["flops"]["done"] == total == wanted
    assert record["flops"]["full"] == branches * written_out([tokens] * len(computed), tokens, text, False)


@pytest.mark.parametrize(
    ("policy", "settings"),
    [
        ("teacache", {"threshold": 0.1}),
        ("magcache", {"ratios": "wan2.1-1.3b"}),
        ("fbcache", {"threshold": 0.3}),
        ("taylorseer", {}),
        ("pab", {}),
        ("toca", {"cross_ratio": 0.2}),
    ],
)
def test_work_inside_the_blocks_is_torchs_count(engine, policy, settings):
    settings = {f"policy.{name}": value for name, value in settings.items()}
    record, total = counted(engine(policy, {"sampling.guidance": 4.0, **settings}))
    assert record["flops"]["done"] == total < 0.9 * record["flops"]["full"]


@pytest.mark.parametrize(
    ("tokens", "petaflop", "attention_share"), [(32_760, 1.678, 0.52), (75_600, 6.523, 0.72)]
)
def test_published_cost_of_a_14b_forward(tokens, petaflop, attention_share):
    total = WAN_14B.forward_flops(tokens, tokens, 512)
    attention = 40 * 4 * tokens * tokens * 5120
    assert total == pytest.approx(petaflop * 1e15, rel=0.01)
    assert attention / total == pytest.approx(attention_share, abs=0.01)
