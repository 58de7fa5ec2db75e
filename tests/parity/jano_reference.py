"""The Jano method over diffusers' own transformer, written from the words of the method.

Every forward computes every token. What a sparse step must not compute is thrown away afterwards: in its
place attention sees the keys and values of the last step that did compute it, and the scheduler its last
velocity. Nothing here is the engine's; the map and the schedule are those of tests/unit/reference.py.

Settings are the config's keys, all of them given: {"sampling.steps": 12, "policy.warmup": 4, ...}.
"""

import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.unit import reference

# The lowest level that a step of this kind computes.
LOWEST = {
    "full": reference.STATIC,
    "refresh": reference.STATIC,
    "moderate": reference.MODERATE,
    "active": reference.ACTIVE,
}
PATCH = (1, 2, 2)


class Made(NamedTuple):
    """One video, and how it came about."""

    latent: Tensor  # [C, T, H, W]
    levels: np.ndarray  # [tokens along T, H, W]
    kinds: list[str]
    velocities: list[Tensor]  # of each step, [C, T, H, W]: what the scheduler was given
    sigmas: list[float]  # of each step


class KeepingAttention:
    """Processor of every self-attention: tokens that are not computed have the keys and values kept of them.

    Attributes:
        computed: bool [N], the tokens of this step; None in a full step, which keeps nothing.
        branch: whose forward this is.
    """

    computed: Tensor | None
    branch: int

    def __init__(self):
        self.kept = {}

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb):
        projected = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states))
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (*projected, attn.to_v(hidden_states)))
        q, k = rotated(q, *rotary_emb), rotated(k, *rotary_emb)
        if self.computed is not None:
            here, place = self.computed[:, None, None], (attn, self.branch)
            old_k, old_v = self.kept.get(place, (np.nan, np.nan))
            k, v = self.kept[place] = torch.where(here, k, old_k), torch.where(here, v, old_v)
        out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def rotated(x, cos, sin):
    """Pairs of x [1, N, H, D] as complex numbers, turned; the tables [1, N, 1, D] have each angle twice."""
    turn = torch.complex(cos[..., ::2], sin[..., ::2])
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(-2)


def complexity_map(velocities, settings):
    """Levels [tokens along T, H, W] from the warm-up's velocities."""
    policy = {key.removeprefix("policy."): value for key, value in settings.items()}
    latent, block = tuple(velocities[0].shape[1:]), policy["block"]
    history = torch.stack(velocities).numpy()
    if policy["score"] == "published":
        scores = reference.block_scores(history, block, policy["temporal_weight"])
    else:
        scores = reference.last_change(history, block)
    if policy["enhance.strength"]:
        scores = reference.enhance(scores, policy["enhance.strength"], policy["enhance.distance"])
    thresholds = policy["static_threshold"], policy["moderate_threshold"]
    levels = reference.token_levels(scores, latent, PATCH, block, *thresholds)
    return np.reshape(levels, token_shape(latent))


def token_shape(latent):
    return [size // edge for size, edge in zip(latent, PATCH, strict=True)]


def begin(pipeline, prompt, seed, settings):
    """diffusers' own texts of the branches, noise and scheduler."""
    sampling = {key.removeprefix("sampling."): value for key, value in settings.items()}
    guided = sampling["guidance"] > 1
    texts = pipeline.encode_prompt(
        prompt, sampling["negative_prompt"], do_classifier_free_guidance=guided, max_sequence_length=32
    )
    size = [settings[f"video.{name}"] for name in ("height", "width", "frames")]
    noise = pipeline.prepare_latents(
        1, 16, *size, torch.float32, torch.device("cpu"), torch.Generator().manual_seed(seed)
    )
    shift = {} if sampling["shift"] is None else {"flow_shift": sampling["shift"]}
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **shift)
    scheduler.set_timesteps(sampling["steps"])
    return texts[: 1 + guided], noise, scheduler


@torch.inference_mode()
def jano(pipeline, prompt, seed, settings, kinds=None, lines=None):
    """Make one video as the settings say; `kinds` of steps may come in another order than the schedule's.

    With `lines` (skipping_reference.Lines) tokens that are not computed go on along theirs.
    """
    texts, latent, scheduler = begin(pipeline, prompt, seed, settings)
    transformer, attention = copy.deepcopy(pipeline.transformer), KeepingAttention()
    for block in transformer.blocks:
        block.attn1.set_processor(attention)
    cuts = ("warmup", "cooldown", "static_interval", "moderate_interval")
    schedule = settings["sampling.steps"], *(settings[f"policy.{name}"] for name in cuts)
    kinds = kinds or reference.schedule(*schedule)
    held = torch.full_like(latent, np.nan)
    levels = np.full(token_shape(latent.shape[2:]), reference.ACTIVE)
    velocities = []
    for kind, timestep in zip(kinds, scheduler.timesteps, strict=True):
        computed = torch.from_numpy(levels >= LOWEST[kind])
        attention.computed = None if kind == "full" else computed.flatten()
        branches = []
        for attention.branch, text in enumerate(texts):
            branches.append(transformer(latent, timestep[None], text, return_dict=False)[0])
        fresh = branches[0]
        if len(branches) == 2:
            fresh = branches[1] + settings["sampling.guidance"] * (branches[0] - branches[1])
        here = computed.repeat_interleave(PATCH[1], 1).repeat_interleave(PATCH[2], 2)
        held = torch.where(here, fresh, held)
        if lines is not None:
            lines.take(fresh[0], computed, float(scheduler.sigmas[len(velocities)]))
            held = lines.guess(float(scheduler.sigmas[len(velocities)]), held)
        latent = scheduler.step(held, timestep, latent, return_dict=False)[0]
        velocities.append(held[0])
        if len(velocities) == settings["policy.warmup"] < len(kinds):
            levels = complexity_map(velocities, settings)
    return Made(latent[0], levels, kinds, velocities, scheduler.sigmas[: len(kinds)].tolist())
