"""What stored velocities foretell of a policy, without running the model.

The policy is led through a full run: where it would compute tokens it is given the stored velocity, elsewhere
they keep or extrapolate what they have, just as in a real run. What this adds to the latent, step by step, is
the predicted error:

    drift = sum over steps i of (sigma[i+1] - sigma[i]) (taken v[i] - stored v[i])

Left out: that later velocities would answer to the drift, that cached keys and values are old, and that the
solver is of a higher order than Euler's. So predictions of one kind of policy can be compared, and no others.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from jano_dist.bench.space import Prediction
from jano_dist.policies import Policy, make_policy
from jano_dist.sampling.velocity import VelocityRows
from jano_dist.tokens.grid import Shape3
from jano_dist.tokens.plan import TokenPlan
from jano_dist.tokens.schedule import StepKind


def replay(policy: Policy, velocities: Tensor, sigmas: Tensor, patch: Shape3) -> Prediction:
    """Lead a policy through a full run.

    Args:
        policy: fresh; it is used up.
        velocities: float32 [S, C, T, H, W], guided, of every step.
        sigmas: float32 [S + 1], noise levels; the last one is where the run ends.
        patch: latent positions per token.
    """
    steps, latent = velocities.shape[0], velocities.shape[2:]
    first = to_rows(velocities[0], patch)
    tokens, width = first.shape
    rows = VelocityRows(tokens, width, torch.float32, first.device, forecasts=policy.forecasts)
    plan, drift, path = TokenPlan.natural(tokens), torch.zeros_like(first), torch.zeros_like(first)
    computed = 0
    for step in range(steps):
        true, sigma = to_rows(velocities[step], patch), float(sigmas[step])
        kind = policy.decide(step)
        own = policy.choose(step).nonzero()[:, 0] if kind is StepKind.CHOSEN else plan.rows(kind)
        if kind is not StepKind.SKIP:
            rows.update(own, true[own], sigma)
        if kind is not StepKind.SKIP and rows.error is not None:
            policy.learn(step, float(rows.error))
        taken = rows.at(sigma)
        levels = policy.observe(step, to_latent(taken, latent, patch))
        plan = plan if levels is None else TokenPlan.from_levels(levels)
        computed += len(own)
        drift += (sigmas[step + 1] - sigmas[step]) * (taken - true)
        path += (sigmas[step + 1] - sigmas[step]) * true
    error = float(drift.norm() / path.norm())
    return Prediction(computed / (steps * tokens), 20 * math.log10(max(error, 1e-10)))


def predict(
    settings: Mapping[str, Any],
    *,
    steps: int,
    runs: Sequence[Tensor],
    sigmas: Tensor,
    patch: Shape3,
) -> Prediction:
    """What full runs foretell of a candidate: the means over them.

    Args:
        settings: the policy's section of its config. steps: that the candidate takes.
        runs: velocities [S, C, T, H, W] of full runs. sigmas: [S + 1], theirs.

    Raises:
        ValueError: settings that do not fit the video or the steps.
    """
    t, h, w = runs[0].shape[2:]
    latent: Shape3 = (t, h, w)
    policies = [make_policy(settings, steps=steps, latent=latent, patch=patch) for _ in runs]
    whole = len(sigmas) - 1
    if steps != whole:  # other noise levels: nothing is stored of what happens there
        return Prediction(steps / whole)
    each = [replay(policy, run, sigmas, patch) for policy, run in zip(policies, runs, strict=True)]
    return Prediction(fmean(one.work for one in each), fmean(one.error or 0.0 for one in each))


def to_rows(latent: Tensor, patch: Shape3) -> Tensor:
    """[C, T, H, W] -> [N, C x patch positions], tokens in natural order."""
    channels, t, h, w = latent.shape
    a, b, c = patch
    cut = latent.reshape(channels, t // a, a, h // b, b, w // c, c)
    return cut.permute(1, 3, 5, 0, 2, 4, 6).reshape(-1, channels * a * b * c)


def to_latent(rows: Tensor, latent: Sequence[int], patch: Shape3) -> Tensor:
    """The inverse of `to_rows`; `latent` is (T, H, W)."""
    (t, h, w), (a, b, c) = latent, patch
    cut = rows.reshape(t // a, h // b, w // c, -1, a, b, c)
    return cut.permute(3, 0, 4, 1, 5, 2, 6).reshape(-1, t, h, w)
