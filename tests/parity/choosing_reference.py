"""Runs whose steps compute chosen tokens, over diffusers' own transformer: every forward computes all.

What a step must not compute is thrown away: attention sees the keys and values of the last step that did
compute them (KeepingAttention), and the scheduler the velocity of that step.
"""

import copy

import numpy as np
import torch

from tests.parity.jano_reference import PATCH, KeepingAttention, begin, token_shape


@torch.inference_mode()
def choosing(pipeline, prompt, seed, settings, rule):
    """The latent [C, T, H, W], and kind and number of tokens of every step.

    Args:
        rule: (tokens, steps) -> one of tests/unit/choosing_reference.py.
    """
    texts, latent, scheduler = begin(pipeline, prompt, seed, settings)
    transformer, attention = copy.deepcopy(pipeline.transformer), KeepingAttention()
    for block in transformer.blocks:
        block.attn1.set_processor(attention)
    shape = token_shape(latent.shape[2:])
    rule, steps = rule(int(np.prod(shape)), len(scheduler.timesteps)), []
    held = torch.full_like(latent, np.nan)
    for step, timestep in enumerate(scheduler.timesteps):
        mask, outside = rule.computes(step)
        steps.append((rule.kind(step, mask, outside), sum(mask)))
        computed = torch.tensor(mask)
        attention.computed = None if outside else computed
        branches = []
        for attention.branch, text in enumerate(texts):
            branches.append(transformer(latent, timestep[None], text, return_dict=False)[0])
        fresh = branches[1] + settings["sampling.guidance"] * (branches[0] - branches[1])
        here = computed.reshape(shape).repeat_interleave(PATCH[1], 1).repeat_interleave(PATCH[2], 2)
        held = torch.where(here, fresh, held)
        rule.hear(step, held[0].double().numpy())
        latent = scheduler.step(held, timestep, latent, return_dict=False)[0]
    return latent[0], steps
