"""The engine's sparse steps against the method written a second time over diffusers (jano_reference.py).

Rounding grows on its way through the sampler: half a bit in the noise of a video moves its last latents by
1e-6 to 6e-4, by seed and settings. These seeds and settings are calm, so a bound of 1e-5 means something.
"""

import functools
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch

from jano_dist import Engine, load_config
from jano_dist.policies import Policy, make_policy
from jano_dist.sampling.velocity import VelocityRows
from jano_dist.tokens.schedule import StepKind
from tests.parity.jano_reference import LOWEST, complexity_map, jano
from tests.parity.skipping_reference import Lines

PROMPT = "a blue box stays still"
SIZE = ("video.frames", "video.height", "video.width")
SCHEDULE = ("policy.warmup", "policy.cooldown", "policy.static_interval", "policy.moderate_interval")
SAMPLING = ("sampling.shift", "sampling.guidance", "sampling.negative_prompt")
SCORE = ("policy.score", "policy.block", "policy.temporal_weight")
ENHANCE = ("policy.enhance.strength", "policy.enhance.distance")
ALWAYS = {
    "sampling.steps": 12,
    "policy.static_threshold": 0.2,
    "policy.moderate_threshold": 0.5,
    "policy.velocity": "hold",
}


class Case(NamedTuple):
    """What differs between the cases; the names above say what the values belong to."""

    seed: int
    size: tuple
    score: tuple
    enhance: tuple
    schedule: tuple
    sampling: tuple
    # Settings that would lead to another map: a case shows that its own are not ignored.
    telling: list[dict[str, Any]]

    @property
    def settings(self):
        names = (*SIZE, *SCORE, *ENHANCE, *SCHEDULE, *SAMPLING)
        values = (*self.size, *self.score, *self.enhance, *self.schedule, *self.sampling)
        return {**ALWAYS, **dict(zip(names, values, strict=True))}


SHORT, LONG = (5, 64, 64), (9, 64, 64)
CASES = {
    "last_change": Case(
        seed=2,
        size=SHORT,
        score=("last_change", (1, 2, 2), 0.7),
        enhance=(0.0, 1),
        schedule=(4, 1, 5, 2),
        sampling=(None, 2.0, ""),
        telling=[{"policy.score": "published"}],
    ),
    "published": Case(
        seed=0,
        size=SHORT,
        score=("published", (2, 3, 2), 0.3),
        enhance=(0.0, 1),
        schedule=(3, 2, 3, 2),
        sampling=(3.0, 2.0, "a red ball"),
        telling=[{"policy.score": "last_change"}, {"policy.temporal_weight": 0.7}],
    ),
    "unguided-enhanced": Case(
        seed=2,
        size=SHORT,
        score=("last_change", (1, 1, 1), 0.7),
        enhance=(0.8, 1),
        schedule=(5, 0, 4, 3),
        sampling=(2.0, 1.0, ""),
        telling=[{"policy.enhance.strength": 0}],
    ),
    "unguided-published-enhanced": Case(
        seed=1,
        size=LONG,
        score=("published", (2, 1, 2), 0.4),
        enhance=(0.8, 2),
        schedule=(4, 1, 5, 2),
        sampling=(5.0, 1.0, ""),
        telling=[
            {"policy.score": "last_change"},
            {"policy.temporal_weight": 0.7},
            {"policy.enhance.strength": 0},
            {"policy.enhance.distance": 1},
        ],
    ),
    "guided-enhanced": Case(
        seed=1,
        size=LONG,
        score=("last_change", (1, 1, 1), 0.7),
        enhance=(0.5, 2),
        schedule=(4, 1, 5, 2),
        sampling=(3.0, 2.0, ""),
        telling=[
            {"policy.enhance.strength": 0},
            {"policy.enhance.strength": 0.8},
            {"policy.enhance.distance": 1},
        ],
    ),
}
every_case = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module")
def reference(pipeline):
    """`reference(name)`: the video of a case, made once."""

    @functools.cache
    def make(name):
        return jano(pipeline, PROMPT, CASES[name].seed, CASES[name].settings)

    return make


@every_case
def test_the_cases_tell(reference, name):
    """Tokens of every level, steps of every kind, and a map that follows from just these settings."""
    case, video = CASES[name], reference(name)
    assert set(video.levels.ravel()) == {1, 2, 3}
    assert set(video.kinds) == {"full", "refresh", "moderate", "active"}
    for change in case.telling:
        other = complexity_map(video.velocities[: case.schedule[0]], {**case.settings, **change})
        assert (other != video.levels).any(), change


@pytest.mark.parametrize("kind", ["kv", "hidden"])
@every_case
def test_video(reference, engine, name, kind):
    case, theirs = CASES[name], reference(name)
    ours = engine("jano", {**case.settings, "cache.kind": kind}).generate(PROMPT, seed=case.seed)
    assert [step["kind"] for step in ours.record["steps"]] == theirs.kinds
    assert np.array_equal(ours.levels, theirs.levels)
    assert theirs.latent.abs().max() > 1
    assert (ours.latents - theirs.latent).abs().max() <= 1e-5


class Follow(Policy):
    """Policy: another one's maps, and steps of these kinds."""

    def __init__(self, policy, kinds):
        self.observe, self.kinds = policy.observe, kinds

    def decide(self, step):
        return StepKind(self.kinds[step])


@pytest.mark.parametrize("kind", ["kv", "hidden"])
def test_a_full_step_between_others_leaves_the_cache_alone(pipeline, model, kind):
    """The schedule has none there; other policies may."""
    case = CASES["last_change"]
    kinds = ["full"] * 4 + ["refresh", "active", "full", "active", "moderate", "full", "active", "moderate"]
    theirs = jano(pipeline, PROMPT, case.seed, case.settings, kinds)
    config = load_config("wan-tiny", policy="jano", overrides={**case.settings, "cache.kind": kind})

    def follow(settings, **facts):
        return Follow(make_policy(settings, **facts), kinds)

    ours = Engine(config, model=model, policies=follow).generate(PROMPT, seed=case.seed)
    assert [step["kind"] for step in ours.record["steps"]] == theirs.kinds
    assert (ours.latents - theirs.latent).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["last_change", "published"])
def test_velocities_on_a_line(pipeline, engine, name):
    case = CASES[name]
    settings = {**case.settings, "policy.velocity": "forecast"}
    lines = Lines()
    theirs = jano(pipeline, PROMPT, case.seed, settings, lines=lines)
    ours = engine("jano", settings).generate(PROMPT, seed=case.seed)
    assert (ours.latents - theirs.latent).abs().max() <= 5e-5  # a line magnifies rounding
    held = jano(pipeline, PROMPT, case.seed, settings)
    assert (held.latent - theirs.latent).abs().max() > 0.01  # it makes a difference
    assert any(lines.follows.values())


@every_case
def test_rows_and_their_sigmas(reference, engine, name):
    """Each step writes the rows of its tokens, computed at its sigma; a skipped row keeps its own sigma."""
    case, theirs = CASES[name], reference(name)
    calls, update = [], VelocityRows.update

    def spy(velocity, index, values, sigma):
        update(velocity, index, values, sigma)
        calls.append((sorted(index.tolist()), sigma, velocity.sigmas.clone()))

    with mock.patch.object(VelocityRows, "update", spy):
        engine("jano", case.settings).generate(PROMPT, seed=case.seed)

    levels, warmup, latest = theirs.levels.ravel(), case.schedule[0], np.zeros(theirs.levels.size)
    assert len(calls) == len(theirs.kinds)
    for step, (rows, sigma, sigmas) in enumerate(calls):
        computed = levels >= LOWEST[theirs.kinds[step]] if step >= warmup else levels > 0
        assert rows == np.flatnonzero(computed).tolist()
        assert sigma == theirs.sigmas[step]
        latest[computed] = sigma
        assert torch.equal(sigmas, torch.tensor(latest, dtype=torch.float32))
