"""Steps that compute some tokens only, against diffusers' plain forward and against `full`."""

import copy
import gc
import weakref
from itertools import pairwise

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


def given_to_scheduler(model, monkeypatch):
    """A list that fills with the velocity [C, T, H, W] of each step, as the scheduler is given it."""
    velocities, make = [], model.scheduler

    def spied(*settings):
        scheduler = make(*settings)
        step = scheduler.step

        def listen(velocity, *arguments, **options):
            velocities.append(velocity[0].clone())
            return step(velocity, *arguments, **options)

        scheduler.step = listen
        return scheduler

    monkeypatch.setattr(model, "scheduler", spied)
    return velocities


def test_skipped_tokens_keep_their_velocity(engine, model, monkeypatch):
    """Bit by bit, while those of the computed tokens change: the scheduler moves all latents."""
    velocities = given_to_scheduler(model, monkeypatch)
    thresholds = {"policy.static_threshold": 0.3, "policy.moderate_threshold": 0.6}
    intervals = {"policy.static_interval": 4, "policy.moderate_interval": 2}
    result = engine("jano", thresholds | intervals).generate("a red ball moves left", seed=1)

    levels = torch.from_numpy(result.levels).flatten()
    assert levels.unique().tolist() == [1, 2, 3]
    steps = result.record["steps"]
    kinds = ["full"] * 4 + ["refresh", "active", "moderate", "active", "refresh", "full"]
    assert [step["kind"] for step in steps] == kinds
    rows = [token_rows(velocity, model.geometry.patch) for velocity in velocities]
    lowest = {"full": 1, "refresh": 1, "moderate": 2, "active": 3}
    for step, (before, after) in enumerate(pairwise(rows), 1):
        computed = levels >= lowest[kinds[step]]
        assert steps[step]["tokens"] == int(computed.sum())
        assert torch.equal(before[~computed], after[~computed])
        assert (before[computed] != after[computed]).any(1).all()


class Watched:
    """A model's `forward` that remembers, without holding on to it, what it was given of a generation."""

    def __init__(self, forward):
        self.forward, self.given = forward, []

    def __call__(self, latent, timestep, branch, rows, cache, *attend):
        output = self.forward(latent, timestep, branch, rows, cache, *attend)
        parts = (cache, *cache.layers, branch, *branch.layers, rows, *attend)
        self.given += [weakref.ref(part) for part in parts]
        return output

    def alive(self):
        gc.collect()
        return [type(part()).__name__ for part in self.given if part() is not None]


@pytest.mark.parametrize("kind", ["kv", "hidden"])
def test_the_model_keeps_nothing_of_a_generation(engine, model, monkeypatch, kind):
    """Caches are gigabytes; only weights outlive a video."""
    watched = Watched(model.forward)
    monkeypatch.setattr(model, "forward", watched)
    engine("jano", {"cache.kind": kind}).generate("a red ball moves left", seed=1)
    assert watched.given
    assert watched.alive() == []


class Broken(NoCache):
    """Fails in its fourth layer."""

    def __init__(self, layers):
        super().__init__(layers)
        self.layers = [*self.layers[:3], Broken.Layer(), *self.layers[4:]]

    class Layer:
        def inputs(self, x, rope):
            raise RuntimeError("out of memory")


@torch.inference_mode()
def test_a_forward_that_fails_leaves_nothing_behind(pipeline, model):
    shape, tokens = (2, 8, 8), 32
    latent, timestep, rows = model.noise(shape, seed=5), torch.tensor(500.0), torch.arange(tokens)
    text = model.encode(["a blue box"])
    broken, branch = Broken(model.geometry.layers), model.branch(text)
    left = [weakref.ref(part) for part in (broken.layers[3], branch, *branch.layers)]
    with pytest.raises(RuntimeError, match="out of memory"):
        model.forward(latent, timestep, branch, rows, broken)
    del broken, branch
    gc.collect()
    assert [part() for part in left] == [None] * len(left)

    after = model.forward(latent, timestep, model.branch(text), rows, NoCache(model.geometry.layers))
    theirs = pipeline.transformer(latent[None], timestep[None], text["text"], return_dict=False)[0][0]
    assert (model.unpatchify(after, shape) - theirs).abs().max() <= 1e-5
