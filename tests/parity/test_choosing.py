"""Policies that choose tokens, against the same rules over diffusers' own transformer.

The seeds are calm, as those of test_jano_against_reference.py are.
"""

import functools

import pytest

from jano_dist import Engine, load_config
from jano_dist.account import steps_of
from jano_dist.degrees import Degrees
from jano_dist.models.sizes import read_sizes
from tests.parity.choosing_reference import choosing
from tests.unit.choosing_reference import RULES

PROMPT = "a blue box stays still"
SIZE = {"video.frames": 9, "video.height": 48, "video.width": 80}
SAMPLING = {
    "sampling.steps": 16,
    "sampling.guidance": 2.0,
    "sampling.shift": 3.0,
    "sampling.negative_prompt": "",
}
RAS = {"warmup": 3, "cooldown": 1, "ratio": 0.4, "reset_interval": 6, "starvation": 0.2}
RUNS = {
    "ras": ("ras", 1, {**RAS, "active": "low"}),
    "ras, high deviation": ("ras", 1, {**RAS, "active": "high"}),
    "hsa": ("hsa", 1, {"warmup": 4, "cooldown": 2, "shares": [0.2, 0.3, 0.5], "divisors": [1, 2, 4]}),
    "hsa, steps of none": ("hsa", 1, {"warmup": 3, "cooldown": 0, "shares": [0.4, 0.6], "divisors": [2, 6]}),
    "astraea": ("astraea", 1, {"warmup": 4, "cooldown": 2, "budgets": [0.4], "penalty": 0.5}),
    "astraea, a budget per step": (
        "astraea",
        1,
        {"warmup": 3, "cooldown": 1, "budgets": [0.5, 0.0, 0.2, 1.0], "penalty": 0.1},
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_is_the_rule(name, pipeline, model):
    policy, seed, options = RUNS[name]
    rule = functools.partial(RULES[policy], **options)
    latent, steps = choosing(pipeline, PROMPT, seed, {**SIZE, **SAMPLING}, rule)
    assert {"full", "refresh", "chosen"} <= {kind for kind, _ in steps}
    own = {f"policy.{key}": value for key, value in options.items()}
    config = load_config("wan-tiny", policy=policy, overrides={**SIZE, **SAMPLING, **own})
    made = Engine(config, model=model).generate(PROMPT, seed=seed)
    assert [(step["kind"], step["tokens"]) for step in made.record["steps"]] == steps
    assert latent.abs().max() > 1
    assert (made.latents - latent).abs().max() <= 1e-5
    check_plan(config, made.record["flops"], chosen={tokens for kind, tokens in steps if kind == "chosen"})


def check_plan(config, flops, chosen):
    """What is planned to be spared is spared; to a token per step, where steps choose differently many."""
    steps = steps_of(read_sizes("wan-tiny"), config, Degrees(1, 1, 1), active=0.2, moderate=0.1)
    full = next(step.flops for step in steps if step.kind == "full")
    spared = sum(step.steps * (full - step.flops) for step in steps)
    assert spared == pytest.approx(flops["full"] - flops["done"], rel=1e-9 if len(chosen) == 1 else 0.02)
