"""Every setting of a policy reaches its place: against the method written a second time (reference.py)."""

import json
import math
import re

import numpy as np
import pytest
import torch

from jano_dist.policies import make_policy
from jano_dist.tokens.schedule import StepKind
from tests.unit import reference

LATENT, PATCH, STEPS = (5, 10, 12), (1, 2, 2), 15
JANO = {
    "name": "jano",
    "score": "last_change",
    "block": (2, 1, 1),
    "temporal_weight": 0.5,
    "warmup": 5,
    "cooldown": 2,
    "static_threshold": 0.25,
    "static_interval": 4,
    "moderate_threshold": 0.55,
    "moderate_interval": 2,
    "enhance": {"strength": 0.6, "distance": 1},
}

# Each changes one setting, or what that one needs to matter; the map must be another one for it.
PUBLISHED = {"score": "published", "block": (2, 2, 2)}
MAPS = {
    "score": ({}, PUBLISHED),
    "block": ({}, {"block": (2, 2, 1)}),
    "temporal_weight": (PUBLISHED, PUBLISHED | {"temporal_weight": 1.0}),
    "warmup": ({}, {"warmup": 6}),
    "static_threshold": ({}, {"static_threshold": 0.3}),
    "moderate_threshold": ({}, {"moderate_threshold": 0.65}),
    "no enhancement": ({}, {"enhance": {"strength": 0.0, "distance": 1}}),
    "enhance.strength": ({}, {"enhance": {"strength": 2.0, "distance": 1}}),
    "enhance.distance": ({}, {"enhance": {"strength": 0.6, "distance": 3}}),
    "warmup of the published score": (PUBLISHED, PUBLISHED | {"warmup": 2}),
}


def build(steps=STEPS, latent=LATENT, patch=PATCH, **changes):
    return make_policy({**JANO, **changes}, steps=steps, latent=latent, patch=patch)


def history(steps=STEPS, seed=0):
    """Velocities [C, T, H, W] of every step: a bright box inside which less changes, on noise."""
    random = np.random.default_rng(seed)
    change = 0.3 + random.random((*LATENT[1:],))
    change[2:8, 3:9] += 1
    change[3:7, 4:8] *= 0.3
    return [torch.from_numpy(change * random.standard_normal((3, *LATENT))).float() for _ in range(steps)]


def run(policy, velocities):
    """What the policy answers after each step."""
    return [policy.observe(step, velocity) for step, velocity in enumerate(velocities)]


def wanted_map(velocities, settings):
    velocities = torch.stack(velocities[: settings["warmup"]]).numpy()
    if settings["score"] == "published":
        scores = reference.block_scores(velocities, settings["block"], settings["temporal_weight"])
    else:
        scores = reference.last_change(velocities, settings["block"])
    if settings["enhance"]["strength"]:
        scores = reference.enhance(scores, **settings["enhance"])
    thresholds = settings["static_threshold"], settings["moderate_threshold"]
    return reference.token_levels(scores, LATENT, PATCH, settings["block"], *thresholds)


class TestMap:
    @pytest.mark.parametrize(("without", "changes"), MAPS.values(), ids=MAPS)
    def test_is_the_references(self, without, changes):
        settings, velocities = {**JANO, **changes}, history()
        wanted = wanted_map(velocities, settings)
        assert set(wanted) == {1, 2, 3}
        assert wanted != wanted_map(velocities, {**JANO, **without}), "the case does not show its setting"
        levels = run(build(**changes), velocities)[settings["warmup"] - 1]
        assert levels.dtype == torch.uint8
        assert levels.tolist() == wanted

    @pytest.mark.parametrize("changes", [{}, PUBLISHED, {"warmup": 2}, {"cooldown": 0}], ids=str)
    def test_comes_once_at_the_end_of_the_warmup(self, changes):
        answers = run(build(**changes), history())
        last = {**JANO, **changes}["warmup"] - 1
        assert [step for step, answer in enumerate(answers) if answer is not None] == [last]

    @pytest.mark.parametrize("changes", [{}, PUBLISHED], ids=str)
    def test_velocities_are_copied(self, changes):
        """The engine may write the next step's velocity into the same memory."""
        buffer, policy, velocities = torch.empty(3, *LATENT), build(**changes), history()
        answers = [policy.observe(step, buffer.copy_(each)) for step, each in enumerate(velocities)]
        assert answers[JANO["warmup"] - 1].tolist() == wanted_map(velocities, {**JANO, **changes})

    def test_of_one_generation_only(self):
        """Two policies share nothing."""
        first, second = build(), build()
        one, other = history(seed=1), history(seed=2)
        answers = [(first.observe(i, one[i]), second.observe(i, other[i])) for i in range(STEPS)]
        for answer, velocities in zip(answers[JANO["warmup"] - 1], (one, other), strict=True):
            assert answer.tolist() == wanted_map(velocities, JANO)

    def test_a_warmup_to_the_end_makes_none(self):
        policy = build(warmup=STEPS)
        assert run(policy, history()) == [None] * STEPS
        assert [policy.decide(step) for step in range(STEPS)] == [StepKind.FULL] * STEPS


class TestSchedule:
    @pytest.mark.parametrize(
        "changes",
        [{}, {"warmup": 3}, {"cooldown": 0}, {"static_interval": 3}, {"moderate_interval": 3}, {"steps": 20}],
        ids=str,
    )
    def test_is_the_references(self, changes):
        settings = {"steps": STEPS, **JANO, **changes}
        names = ("steps", "warmup", "cooldown", "static_interval", "moderate_interval")
        policy = build(**changes)
        decided = [policy.decide(step) for step in range(settings["steps"])]
        assert decided == reference.schedule(*(settings[name] for name in names))


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"warmup": 1}, "the complexity map needs 2 warm-up steps or more: raise policy.warmup"),
            (
                {"static_threshold": 0.6},
                "policy.static_threshold 0.6 is above policy.moderate_threshold 0.55: give them in order",
            ),
            ({"steps": 7}, "7 steps leave nothing between 5 warm-up and 2 cool-down steps: "),
            ({"steps": 4}, "4 steps leave nothing between 5 warm-up and 2 cool-down steps: "),
            ({"static_interval": 0}, "policy.static_interval and policy.moderate_interval must be 1 or more"),
            ({"block": (6, 1, 1)}, "a block of (6, 1, 1) does not fit in a latent of (5, 10, 12)"),
            ({"latent": (5, 9, 12)}, "a latent of (5, 9, 12) cannot be cut into patches of (1, 2, 2)"),
        ],
        ids=str,
    )
    def test_before_the_first_step(self, changes, sentence):
        with pytest.raises(ValueError, match="^" + re.escape(sentence)):
            build(**changes)

    def test_equal_thresholds_and_a_warmup_of_two_are_right(self):
        velocities, settings = history(), {"static_threshold": 0.4, "moderate_threshold": 0.4, "warmup": 2}
        levels = run(build(**settings), velocities)[1]
        assert levels.tolist() == wanted_map(velocities, {**JANO, **settings})

    @pytest.mark.parametrize("changes", [{"name": "jana"}, {"score": "first_change"}], ids=str)
    def test_unknown_names(self, changes):
        with pytest.raises(KeyError, match=next(iter(changes.values()))):
            build(**changes)


def test_full_computes_all_and_never_makes_a_map():
    policy = make_policy({"name": "full"}, steps=STEPS, latent=LATENT, patch=PATCH)
    assert [policy.decide(step) for step in range(STEPS)] == [StepKind.FULL] * STEPS
    assert run(policy, history()) == [None] * STEPS


class TestUniform:
    @pytest.mark.parametrize("interval", [1, 2, 3, 5])
    def test_every_so_many_steps(self, interval):
        policy = make_policy(
            {"name": "uniform", "warmup": 4, "cooldown": 2, "interval": interval, "velocity": "hold"},
            steps=20, latent=LATENT, patch=PATCH,
        )  # fmt: skip
        pattern = (["skip"] * (interval - 1) + ["full"]) * 20
        assert [policy.decide(step) for step in range(20)] == ["full"] * 4 + pattern[:14] + ["full"] * 2
        assert not policy.forecasts

    def test_nothing_between(self):
        settings = {"name": "uniform", "warmup": 4, "cooldown": 2, "interval": 2, "velocity": "forecast"}
        with pytest.raises(ValueError, match="6 steps leave nothing between 4 warm-up and 2 cool-down steps"):
            make_policy(settings, steps=6, latent=LATENT, patch=PATCH)


class TestForecast:
    """Against the rule as words say it, step by step."""

    def build(self):
        settings = {"name": "forecast", "warmup": 4, "cooldown": 2, "tau": 0.1, "max_interval": 5}
        return make_policy(settings, steps=30, latent=LATENT, patch=PATCH)

    def computed(self, policy, errors, first=0, end=30):
        steps = []
        for step in range(first, end):
            if policy.decide(step) == "full":
                steps.append(step)
                policy.learn(step, errors[step])
        return steps

    def rule(self, errors, tau=0.1, most=5):
        steps = list(range(4))
        while steps[-1] < 28:
            n, e = steps[-1] - steps[-2], errors[steps[-1]]
            reach = n * math.sqrt(tau / e)
            steps.append(steps[-1] + max(1, min(math.floor(reach), most, 2 * n)))
        return [step for step in steps if step < 28] + [28, 29]

    @pytest.mark.parametrize("seed", range(8))
    def test_the_rule(self, seed):
        errors = (10 ** np.random.default_rng(seed).uniform(-3, 0, 30)).tolist()
        assert self.computed(self.build(), errors) == self.rule(errors)

    @pytest.mark.parametrize(
        ("errors", "wanted"),
        [
            ([1.0] * 30, list(range(30))),
            ([1e-9] * 30, [0, 1, 2, 3, 5, 9, 14, 19, 24, 28, 29]),  # twice as far each time, then 5
            ([0.0] * 30, [0, 1, 2, 3, 5, 9, 14, 19, 24, 28, 29]),
            ([0.02] * 30, [0, 1, 2, 3, 5, 9, 14, 19, 24, 28, 29]),  # sqrt(5) times as far is more than twice
            ([0.1] * 30, list(range(30))),
        ],
    )
    def test_known_walks(self, errors, wanted):
        assert self.computed(self.build(), errors) == wanted

    def test_memory(self):
        errors = (10 ** np.random.default_rng(3).uniform(-3, 0, 30)).tolist()
        whole = self.computed(self.build(), errors)
        for cut in range(1, 30):
            first, second = self.build(), self.build()
            before = self.computed(first, errors, end=cut)
            second.recall(json.loads(json.dumps(first.memory())))
            assert before + self.computed(second, errors, cut) == whole
