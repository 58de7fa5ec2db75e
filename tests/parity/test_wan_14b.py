"""Wan2.1-14B at its true dimensions: names and sizes on `meta`, one block with random weights on the CPU."""

import torch
from diffusers import WanTransformer3DModel

from jano_dist.cache import KVCache
from jano_dist.models.wan import WanTransformer
from jano_dist.tokens.plan import TokenPlan
from jano_dist.tokens.schedule import StepKind

LAYERS, HEADS, HEAD_DIM, FFN, TEXT = 40, 40, 128, 13_824, 4096


def test_parameters_and_names_as_published():
    with torch.device("meta"):
        model = WanTransformer3DModel()  # diffusers' defaults are the 14B's
    names = dict(model.named_parameters())
    d = HEADS * HEAD_DIM
    linear = lambda i, o: i * o + o  # noqa: E731
    block = 8 * linear(d, d) + 4 * d + 2 * d + linear(d, FFN) + linear(FFN, d) + 6 * d
    time = linear(256, d) + linear(d, d) + linear(d, 6 * d)
    text = linear(TEXT, d) + linear(d, d)
    ends = linear(16 * 4, d) + linear(d, 16 * 4) + 2 * d
    assert sum(p.numel() for p in names.values()) == LAYERS * block + time + text + ends
    assert 14.2e9 < sum(p.numel() for p in names.values()) < 14.4e9
    assert len(names) == 27 * LAYERS + 15  # 1,095 tensors in the published index
    for name in (
        "patch_embedding.weight",
        "condition_embedder.time_embedder.linear_1.weight",
        "condition_embedder.text_embedder.linear_2.bias",
        "blocks.39.attn1.to_q.weight",
        "blocks.39.attn2.norm_k.weight",
        "blocks.39.ffn.net.0.proj.weight",
        "blocks.39.scale_shift_table",
        "proj_out.bias",
    ):
        assert name in names
    assert names["blocks.0.ffn.net.0.proj.weight"].shape == (FFN, d)
    WanTransformer(model)  # hooks and processors find every boundary they need


@torch.inference_mode()
def test_partial_step_of_one_block_at_true_width():
    """512 tokens, float32: active rows of an unchanged input equal the plain forward's."""
    torch.manual_seed(0)
    model = WanTransformer3DModel(num_layers=1).eval()
    latent = torch.randn(16, 2, 32, 32)  # 2 x 16 x 16 = 512 tokens
    timestep, text = torch.tensor(600.0), torch.randn(1, 64, TEXT)
    plain = model(latent[None], timestep[None], text, return_dict=False)[0][0]
    ours = WanTransformer(model)
    levels = torch.randint(1, 4, (512,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plan, branch = TokenPlan.from_levels(levels), ours.branch({"text": text})
    cache = KVCache(1, 512, HEADS, HEAD_DIM, torch.float32, torch.device("cpu"))
    output = torch.zeros(512, 64)
    rows = plan.rows(StepKind.REFRESH)
    output[rows] = ours.forward(latent, timestep, branch, rows, cache)
    rows = plan.rows(StepKind.ACTIVE)
    output[rows] = ours.forward(latent, timestep, branch, rows, cache)
    difference = (ours.unpatchify(output, (2, 32, 32)) - plain).abs().max()
    assert difference / plain.abs().max() <= 1e-5
