"""Policies that choose tokens on several ranks, against the same engine in one process."""

import functools

import numpy as np
import pytest
import torch

from jano_dist import Engine, load_config
from tests.gang.harness import gang

PROMPT, SEED = "a blue box stays still", 3  # a calm seed: see tests/parity/test_jano_against_reference.py
SMALL = {
    "video.frames": 9,
    "video.height": 48,
    "video.width": 80,
    "sampling.steps": 14,
    "sampling.guidance": 2.0,
    "sampling.shift": 3.0,
    "model.vae_parallel": "single",
    "policy.warmup": 3,
}
RUNS = {
    "ras": ("ras", {"policy.ratio": 0.4, "policy.reset_interval": 5}),
    "hsa": ("hsa", {"policy.shares": [0.2, 0.3, 0.5], "policy.divisors": [1, 2, 4]}),
    "astraea": ("astraea", {"policy.budgets": [0.4, 0.0, 0.7]}),
    "fewer tokens than ranks": ("astraea", {"policy.budgets": [0.02, 0.5]}),
}
MESHES = {"cfg": {"mesh.cfg": 2}, "kv": {"mesh.kv": 2}, "ulysses": {"mesh.ulysses": 2}}


def generate(mesh, model=None):
    """The engine's model, and of each run latents and what its steps computed."""
    made = {}
    for name, (policy, own) in RUNS.items():
        config = load_config("wan-tiny", policy=policy, overrides={**SMALL, **own, **mesh})
        engine = Engine(config, model=model)
        model, result = engine.model, engine.generate(PROMPT, seed=SEED)
        steps = [(step["kind"], step["tokens"]) for step in result.record["steps"]]
        made[name] = result.latents.numpy(), steps
    return model, made


def on_every_mesh():
    model, results = None, {}
    for name, mesh in MESHES.items():
        model, results[name] = generate(mesh, model)
    return results


@functools.cache
def alone():
    torch.set_num_threads(1)
    return generate({})[1]


@functools.cache
def together():
    return gang(2, on_every_mesh, timeout=300)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("mesh", MESHES)
def test_as_in_one_process(mesh, run):
    latents, steps = alone()[run]
    for rank in together():
        ours, taken = rank[mesh][run]
        assert taken == steps
        assert np.abs(ours - latents).max() <= 3e-5
    assert np.array_equal(together()[0][mesh][run][0], together()[1][mesh][run][0])


def test_the_runs_tell():
    """Steps of every kind, and one that leaves a rank without a token."""
    kinds = {kind for _, steps in alone().values() for kind, _ in steps}
    assert kinds == {"full", "refresh", "chosen", "skip"}
    assert ("chosen", 1) in alone()["fewer tokens than ranks"][1]
