"""Policies that skip whole steps, against the same rules over diffusers' own transformer."""

import pytest

from jano_dist import Engine, load_config
from tests.parity.skipping_reference import Forecast, Uniform, skipping

PROMPT = "a red ball moves left over a navy striped background"
SIZE = {"video.frames": 9, "video.height": 48, "video.width": 80}
SAMPLING = {
    "sampling.steps": 16,
    "sampling.guidance": 3.0,
    "sampling.shift": 3.0,
    "sampling.negative_prompt": "",
}
RUNS = {
    "held": ("uniform", {"warmup": 4, "cooldown": 2, "interval": 3, "velocity": "hold"}, Uniform),
    "on a line": ("uniform", {"warmup": 4, "cooldown": 1, "interval": 2, "velocity": "forecast"}, Uniform),
    "by its error": ("forecast", {"warmup": 4, "cooldown": 2, "tau": 1.5, "max_interval": 4}, Forecast),
}


@pytest.mark.parametrize("name", RUNS)
def test_is_the_rule(name, pipeline, model):
    policy, options, rule = RUNS[name]
    latent, computed = skipping(pipeline, PROMPT, 1, {**SIZE, **SAMPLING}, rule(**options))
    own = {f"policy.{key}": value for key, value in options.items()}
    config = load_config("wan-tiny", policy=policy, overrides={**SIZE, **SAMPLING, **own})
    made = Engine(config, model=model).generate(PROMPT, seed=1)
    steps = made.record["steps"]
    assert [step["kind"] for step in steps] == ["full" if each else "skip" for each in computed]
    assert [step["tokens"] for step in steps] == [45 if each else 0 for each in computed]
    assert 4 < sum(computed) < 13
    # A line through two values magnifies their rounding.
    assert (made.latents - latent).abs().max() <= (5e-5 if rule(**options).forecast else 1e-5)
    assert latent.abs().max() > 1
