"""Policies that choose tokens, against their definitions written a second time (choosing_reference.py)."""

import json

import numpy as np
import pytest
import torch

from jano_dist.account import Room, cheapest, memory_of, steps_of
from jano_dist.config import CHOOSING, CacheConfig, load_config
from jano_dist.degrees import Degrees
from jano_dist.errors import UserError
from jano_dist.models.sizes import read_sizes
from jano_dist.policies import make_policy
from tests.unit.choosing_reference import RULES

LATENT, PATCH, TOKENS, STEPS = (3, 6, 10), (1, 2, 2), 45, 22
RAS = {"warmup": 3, "cooldown": 1, "ratio": 0.4, "reset_interval": 6, "starvation": 0.1, "active": "low"}
HSA = {"warmup": 4, "cooldown": 2, "shares": (0.25, 0.3, 0.45), "divisors": (1, 2, 4)}
ASTRAEA = {"warmup": 3, "cooldown": 1, "budgets": (0.5,), "penalty": 0.5}
CASES = {
    "ras": ("ras", RAS),
    "ras, high deviation": ("ras", {**RAS, "active": "high", "starvation": 0.4}),
    "ras, no starvation prevention": ("ras", {**RAS, "starvation": 0.0}),
    "ras, a share that floats miss": ("ras", {**RAS, "ratio": 0.9, "reset_interval": 50}),
    "ras, all": ("ras", {**RAS, "ratio": 1.0}),
    "hsa": ("hsa", HSA),
    "hsa, steps of none": ("hsa", {**HSA, "shares": (0.5, 0.5), "divisors": (2, 6)}),
    "hsa, no group meets another": ("hsa", {**HSA, "shares": (0.0, 0.6, 0.4), "divisors": (1, 3, 4)}),
    "astraea": ("astraea", ASTRAEA),
    "astraea, a budget per step": ("astraea", {**ASTRAEA, "budgets": (0.3, 0.0, 0.7, 1.0, 0.1)}),
    "astraea, by change alone": ("astraea", {**ASTRAEA, "penalty": 0.0}),
    "astraea, by age": ("astraea", {**ASTRAEA, "penalty": 5.0, "budgets": (0.1,)}),
}
every_case = pytest.mark.parametrize(("name", "settings"), CASES.values(), ids=CASES)


def velocities(seed=0):
    """[C, T, H, W] of every step: each token has a size of its own, and changes at a pace of its own."""
    random = np.random.default_rng(seed)
    size = np.repeat(np.repeat(random.uniform(0.5, 2, (3, 3, 5)), 2, 1), 2, 2)
    pace = np.repeat(np.repeat(random.uniform(0.05, 1, (3, 3, 5)), 2, 1), 2, 2)
    latest, made = random.standard_normal((6, *LATENT)), []
    for _ in range(STEPS):
        latest = latest + pace * random.standard_normal(latest.shape)
        made.append(torch.from_numpy(size * latest).float())
    return made


def build(name, settings):
    return make_policy({"name": name, **settings}, steps=STEPS, latent=LATENT, patch=PATCH)


def positions(mask):
    """Where the tokens of a mask lie, bool [T, H, W]."""
    tokens = torch.as_tensor(mask).reshape(3, 3, 5)
    return tokens.repeat_interleave(2, 1).repeat_interleave(2, 2)


def walk(policy, fresh, first=0, held=None):
    """Kind and tokens of every step; between them the policy sees what the engine would hold. One buffer."""
    kinds, masks, buffer = [], [], torch.empty(6, *LATENT)
    held = torch.zeros(6, *LATENT) if held is None else held
    for step in range(first, STEPS):
        kind = str(policy.decide(step))
        mask = torch.full((TOKENS,), kind != "skip")
        if kind == "chosen":
            mask = policy.choose(step)
            assert mask.dtype == torch.bool
        held = torch.where(positions(mask), fresh[step], held)
        answer = policy.observe(step, buffer.copy_(held))
        assert (answer is not None) == (step == policy._warmup - 1)
        if answer is not None:
            assert answer.dtype == torch.uint8
            assert answer.tolist() == [3] * TOKENS
        kinds.append(kind)
        masks.append(mask.tolist())
    return kinds, masks


def rule_walk(name, settings, fresh):
    rule, kinds, masks = RULES[name](TOKENS, STEPS, **settings), [], []
    held = np.zeros((6, *LATENT))
    for step in range(STEPS):
        mask, outside = rule.computes(step)
        held = np.where(positions(mask).numpy(), fresh[step].double().numpy(), held)
        rule.hear(step, held)
        kinds.append(rule.kind(step, mask, outside))
        masks.append(list(mask))
    return kinds, masks


@every_case
@pytest.mark.parametrize("seed", [0, 1])
def test_is_the_definition(name, settings, seed):
    fresh = velocities(seed)
    assert walk(build(name, settings), fresh) == rule_walk(name, settings, fresh)


@pytest.mark.parametrize(
    ("name", "settings", "without"),
    [
        ("ras", RAS, {"active": "high"}),
        ("ras", RAS, {"starvation": 0.0}),
        ("hsa", HSA, {"shares": (0.25, 0.25, 0.5)}),
        ("astraea", ASTRAEA, {"penalty": 0.0}),
    ],
)
def test_the_cases_tell(name, settings, without):
    """Each setting leads to other tokens."""
    fresh = velocities()
    assert rule_walk(name, settings, fresh) != rule_walk(name, {**settings, **without}, fresh)


def test_ras_brings_dropped_tokens_back():
    """Without k some are never computed again; with a large one all take turns."""
    fresh = velocities()
    settings = {**RAS, "reset_interval": 50, "cooldown": 0}
    for active in ("low", "high"):
        never = []
        for k in (0.0, 5.0):
            _, masks = walk(build("ras", {**settings, "starvation": k, "active": active}), fresh)
            never.append(sum(not any(own) for own in zip(*masks[4:], strict=True)))
        assert never[0] > never[1] == 0


def test_nothing_is_shared():
    fresh = velocities()
    for name, settings in CASES.values():
        first = walk(build(name, settings), fresh)
        assert walk(build(name, settings), fresh) == first


class TestSnapshots:
    """A policy that takes up another's memory goes on as that one does, where it says it may."""

    @every_case
    def test_going_on(self, name, settings):
        fresh, starts = velocities(), []
        kinds, masks = walk(build(name, settings), fresh)
        for cut in range(1, STEPS):
            first, second, held = build(name, settings), build(name, settings), torch.zeros(6, *LATENT)
            for step in range(cut):
                first.decide(step)
                if kinds[step] == "chosen":
                    first.choose(step)
                held = torch.where(positions(masks[step]), fresh[step], held)
                first.observe(step, held)
            if first.starts_afresh(cut):
                assert kinds[cut] in ("full", "refresh")
                second.recall(json.loads(json.dumps(first.memory())))
                assert walk(second, fresh, cut, held) == (kinds[cut:], masks[cut:])
                starts.append(cut)
        warmup, end = settings["warmup"], STEPS - settings["cooldown"]
        refreshes = [step for step in range(warmup, end) if kinds[step] == "refresh"]
        before = {
            "ras": [*range(1, warmup), *refreshes],
            "hsa": [*range(1, warmup - 1), *refreshes],
            "astraea": [*range(1, warmup)],
        }
        assert starts == [*before[name], *range(end, STEPS)]


class TestSettings:
    @pytest.mark.parametrize("name", CHOOSING)
    def test_nothing_between(self, name):
        settings = {"ras": RAS, "hsa": HSA, "astraea": ASTRAEA}[name]
        with pytest.raises(
            ValueError, match="22 steps leave nothing between 20 warm-up and 2 cool-down steps"
        ):
            build(name, {**settings, "warmup": 20, "cooldown": 2})

    @pytest.mark.parametrize(
        ("name", "key", "value", "sentence"),
        [
            ("hsa", "shares", [0.5, 0.5], "policy.shares has 2 values and policy.divisors 3: give both for"),
            ("hsa", "shares", [0.5, 0.3, 0.1], "policy.shares sum to 0.9: give shares that sum to 1"),
            ("hsa", "divisors", [0, 1, 2], "policy.divisors.0 should be greater than or equal to 1"),
            ("hsa", "warmup", 1, "policy.warmup should be greater than or equal to 2"),
            ("astraea", "budgets", [1.5], "policy.budgets.0 should be less than or equal to 1"),
            ("astraea", "budgets", [], "policy.budgets"),
            ("ras", "ratio", 0, "policy.ratio should be greater than 0"),
            ("ras", "active", "both", "policy.active should be 'low' or 'high'"),
        ],
    )
    def test_refused(self, name, key, value, sentence):
        with pytest.raises(UserError) as caught:
            load_config("wan-tiny", policy=name, overrides={f"policy.{key}": value})
        assert sentence in str(caught.value)

    @pytest.mark.parametrize("name", CHOOSING)
    @pytest.mark.parametrize("change", [{"kind": "hidden"}, {"dtype": "fp8"}, {"device": "cpu"}], ids=str)
    def test_caches_that_keep_a_prefix_only(self, name, change):
        ((key, value),) = change.items()
        with pytest.raises(UserError) as caught:
            load_config("wan-tiny", policy=name, overrides={f"cache.{key}": value})
        assert str(caught.value).startswith(f"config wan-tiny: policy {name} chooses the tokens of each step")
        assert load_config("wan-tiny", policy="jano", overrides={f"cache.{key}": value}).cache == CacheConfig(
            **change
        )


class TestAccount:
    @pytest.mark.parametrize(
        ("name", "settings", "kinds"),
        [
            # Worked out by hand; the steps between warm-up and cool-down are 47, 42 and 42.
            ("ras", {"ratio": 0.25, "reset_interval": 5}, {"full": 3, "refresh": 10, "chosen": 37}),
            ("hsa", {}, {"full": 8, "refresh": 11, "chosen": 31}),
            ("astraea", {"budgets": [0.2, 0.0, 1.0]}, {"full": 8, "refresh": 14, "chosen": 14, "skip": 14}),
        ],
    )
    def test_steps(self, name, settings, kinds):
        own = {f"policy.{key}": value for key, value in settings.items()}
        config = load_config("wan2.1-14b-720p", policy=name, overrides={"sampling.steps": 50, **own})
        sizes = read_sizes("Wan-AI/Wan2.1-T2V-14B-Diffusers", local=True)
        steps = {
            step.kind: step for step in steps_of(sizes, config, Degrees(1, 1, 1), active=0.9, moderate=0)
        }
        assert {kind: step.steps for kind, step in steps.items()} == kinds
        n = 75_600
        # Of 31 steps of HSA 21 are odd (group 1) and 10 even (1 and 2).
        mean = {"ras": 0.25, "hsa": (21 * 0.3 + 10 * 0.6) / 31, "astraea": 0.2}[name]
        assert steps["chosen"].tokens == pytest.approx(mean * n, abs=1)
        assert steps["refresh"].tokens == steps["full"].tokens == n
        assert memory_of(sizes, config, Degrees(1, 1, 1)).resident["cache"] == 2 * 2 * 40 * n * 5120 * 2

    @pytest.mark.parametrize("name", CHOOSING)
    def test_no_other_cache_is_proposed(self, name):
        """14B's caches, 124 GB for both branches, are too much for one GPU of 130 GiB beside the weights."""
        sizes = read_sizes("Wan-AI/Wan2.1-T2V-14B-Diffusers", local=True)
        room = Room(130 * 2**30)
        for policy, proposal in {"jano": "--set cache.dtype=fp8", name: "2 ranks"}.items():
            config = load_config("wan2.1-14b-720p", policy=policy)
            assert cheapest(sizes, config, room, world=1, local_world=8)[0] == proposal

    @pytest.mark.parametrize("name", CHOOSING)
    def test_too_few_steps(self, name):
        config = load_config("wan-tiny", policy=name, overrides={"sampling.steps": 5, "policy.warmup": 5})
        with pytest.raises(UserError, match="5 steps leave nothing between 5 warm-up and"):
            steps_of(read_sizes("wan-tiny"), config, Degrees(1, 1, 1), active=0.2, moderate=0)
