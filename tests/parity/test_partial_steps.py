"""Steps that compute some tokens only, against diffusers' plain forward and against `full`."""

import copy

import pytest
import torch

from jano_dist.cache import KVCache, NoCache
from jano_dist.tokens.plan import TokenPlan
from jano_dist.tokens.schedule import StepKind


def random_plan(tokens, seed=0):
    return TokenPlan.from_levels(
        torch.randint(1, 4, (tokens,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    )


def token_rows(velocity, patch):
    """[C, T, H, W] -> [N, C*pt*ph*pw], by loops: the values of each token's box."""
    (_, t, h, w), (pt, ph, pw) = velocity.shape, patch
    boxes = [
        velocity[:, i : i + pt, j : j + ph, k : k + pw].flatten()
        for i in range(0, t, pt)
        for j in range(0, h, ph)
        for k in range(0, w, pw)
    ]
    return torch.stack(boxes)


@torch.inference_mode()
@pytest.mark.parametrize("kind", [StepKind.MODERATE, StepKind.ACTIVE])
def test_partial_step_equals_the_rows_of_a_full_forward(pipeline, model, kind):
    geometry, shape = model.geometry, (5, 12, 8)
    plan = random_plan(5 * 6 * 4)
    latent, timestep = model.noise(shape, seed=3), torch.tensor(700.0)
    branch = model.branch(model.encode(["a red ball moves left"]))
    sizes = (geometry.layers, plan.tokens, geometry.heads, geometry.head_dim)
    cache = KVCache(*sizes, model.dtype, model.device)
    # In float64, or both sides' rounding would add up.
    exact = copy.deepcopy(pipeline.transformer).double()
    theirs = exact(latent[None].double(), timestep[None], branch.text.double(), return_dict=False)[0][0]

    model.forward(latent, timestep, branch, plan.rows(StepKind.REFRESH), cache)
    rows = plan.rows(kind)
    ours = model.forward(latent, timestep, branch, rows, cache)  # [n, P], P in the model's own order

    whole = torch.zeros(plan.tokens, geometry.row_width)
    whole[rows] = ours
    ours_by_token = token_rows(model.unpatchify(whole, shape), geometry.patch)[rows]
    assert 0 < rows.numel() < plan.tokens
    difference = (ours_by_token - token_rows(theirs, geometry.patch)[rows]).abs().max()
    assert difference <= 1e-6 * float(theirs.abs().max())


@torch.inference_mode()
def test_refresh_and_full_agree_in_any_token_order(pipeline, model):
    shape, plan = (5, 12, 8), random_plan(5 * 6 * 4, seed=1)
    latent, timestep = model.noise(shape, seed=4), torch.tensor(300.0)
    branch = model.branch(model.encode(["a blue box"]))
    theirs = pipeline.transformer(latent[None], timestep[None], branch.text, return_dict=False)[0][0]
    rows = plan.rows(StepKind.FULL)
    whole = torch.zeros(plan.tokens, model.geometry.row_width)
    whole[rows] = model.forward(latent, timestep, branch, rows, NoCache(model.geometry.layers))
    assert (model.unpatchify(whole, shape) - theirs).abs().max() <= 1e-5


def test_everything_active_equals_full(engine):
    full = engine("full").generate("a red ball moves left", seed=1).latents
    thresholds = {"policy.static_threshold": 0.0, "policy.moderate_threshold": 0.0}
    jano = engine("jano", thresholds).generate("a red ball moves left", seed=1)
    assert jano.record["levels"] == {"static": 0.0, "moderate": 0.0, "active": 1.0}
    assert (jano.latents - full).abs().max() <= 1e-6


def test_warmup_to_the_end_equals_full(engine):
    full = engine("full").generate("a red ball moves left", seed=1).latents
    jano = engine("jano", {"policy.warmup": 10}).generate("a red ball moves left", seed=1)
    assert {step["kind"] for step in jano.record["steps"]} == {"full"}
    assert torch.equal(jano.latents, full)


def test_skipped_tokens_keep_their_velocity(engine):
    """A step changes the latent of skipped tokens by the scheduler and their held velocity alone."""
    result = engine("jano", {"policy.static_threshold": 0.3, "policy.moderate_threshold": 0.6}).generate(
        "a red ball moves left", seed=1
    )
    computed = [step["tokens"] for step in result.record["steps"]]
    tokens = result.levels.size
    active = int((result.levels == 3).sum())
    moderate = int((result.levels == 2).sum())
    by_kind = {"full": tokens, "refresh": tokens, "moderate": active + moderate, "active": active}
    assert computed == [by_kind[step["kind"]] for step in result.record["steps"]]
    assert min(computed) < tokens
