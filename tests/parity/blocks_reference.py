"""A small Wan with random weights, and its forward written out part by part, so that a method that reuses
parts can be written in plain loops beside it. Nothing here is the engine's."""

import torch
from diffusers import WanTransformer3DModel

LAYERS, SHAPE, TEXT, STEPS, GUIDANCE = 3, (2, 4, 6), 5, 10, 3.0
TOKENS = 2 * 2 * 3


def small_wan():
    """Weights large enough that all parts matter, in float64."""
    torch.manual_seed(7)
    wan = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=16,
        ffn_dim=32,
        num_layers=LAYERS,
        rope_max_seq_len=32,
    )
    for parameter in wan.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 1.2 / parameter.shape[-1] ** 0.5)
    return wan.double().eval().requires_grad_(False)


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TEXTS = [drawn(1, 1, TEXT, 8), drawn(2, 1, TEXT, 8)]
TIMESTEPS = [1000.0 * (1 - step / STEPS) for step in range(STEPS)]


class Forward:
    """One forward of one branch: what the blocks are given."""

    def __init__(self, wan, latent, timestep, text):
        self.wan, self.latent = wan, latent
        self.rope = wan.rope(latent[None])
        self.x = wan.patch_embedding(latent[None]).flatten(2).transpose(1, 2)  # [1, N, W]
        self.time, projected, self.text, _ = wan.condition_embedder(torch.tensor([timestep]), text)
        self.projected = projected.unflatten(1, (6, -1))

    def block(self, layer, x, parts=None):
        """A block's output; `parts(name, x, compute)` stands between it and its three parts."""
        block = self.wan.blocks[layer]
        parts = parts or (lambda name, x, compute: compute(x))
        shift, scale, gate, c_shift, c_scale, c_gate = (block.scale_shift_table + self.projected).chunk(6, 1)
        normed = block.norm1(x) * (1 + scale) + shift
        x = x + gate * parts("attn1", normed, lambda x: block.attn1(x, None, None, self.rope))
        x = x + parts("attn2", block.norm2(x), lambda x: block.attn2(x, self.text, None, None))
        normed = block.norm3(x) * (1 + c_scale) + c_shift
        return x + c_gate * parts("ffn", normed, block.ffn)

    def head(self, x):
        """[1, N, W] -> velocity [4, T, H, W]."""
        shift, scale = (self.wan.scale_shift_table + self.time[:, None]).chunk(2, 1)
        rows = self.wan.proj_out(self.wan.norm_out(x) * (1 + scale) + shift)
        t, h, w = SHAPE
        boxes = rows.view(t, h // 2, w // 2, 1, 2, 2, 4)
        return boxes.permute(6, 0, 3, 1, 4, 2, 5).reshape(4, t, h, w)


def walk(velocity):
    """Straight steps with the guided velocity; `velocity(step, branch, latent)` of one branch."""
    latent, latents = drawn(3, 4, *SHAPE), []
    for step in range(STEPS):
        cond, uncond = (velocity(step, branch, latent) for branch in (0, 1))
        latent = latent - (uncond + GUIDANCE * (cond - uncond)) / STEPS
        latents.append(latent)
    return torch.stack(latents)
