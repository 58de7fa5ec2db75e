"""Caches inside the blocks on several ranks against one process, and what goes on from a snapshot."""

import functools
from itertools import pairwise

import numpy as np
import pytest
import torch

from jano_dist import Engine, load_config
from jano_dist.account.memory import memory_of
from jano_dist.degrees import Degrees
from jano_dist.errors import UserError
from jano_dist.models.sizes import read_sizes
from tests.gang.harness import gang
from tests.gang.test_resume import Shelf

PROMPT, STEPS = "a red ball moves left over a navy striped background", 10
POLICIES = {
    "teacache": {"policy.threshold": 0.1},
    "magcache": {"policy.ratios": "wan2.1-1.3b"},
    "fbcache": {"policy.threshold": 0.4},
    "taylorseer": {"policy.interval": 3},
    "pab": {"policy.timesteps": [100, 1001]},
    "toca": {"policy.cross_ratio": 0.2, "policy.interval": 2, "policy.cross_interval": 4},
}


def config(policy, **overrides):
    small = {"video.frames": 9, "video.height": 48, "video.width": 80, "sampling.steps": STEPS}
    small |= {"model.vae_parallel": "single", "sampling.guidance": 3.0, "sampling.shift": 3.0}
    return load_config("wan-tiny", policy=policy, overrides={**small, **POLICIES[policy], **overrides})


def videos(policies, **overrides):
    """Latents, every step's work inside the blocks, FLOPs, and bytes kept, by policy."""
    model, made = None, {}
    for policy in policies:
        engine = Engine(config(policy, **overrides), model=model)
        model, result = engine.model, engine.generate(PROMPT, seed=1)
        work = [step["blocks"] for step in result.record["steps"]]
        kept = result.record["memory"]["cache_bytes_per_rank"]
        made[policy] = result.latents.numpy(), work, result.record["flops"], kept
    return made


@functools.cache
def alone():
    return videos(POLICIES)


def test_every_policy_reuses_something():
    for policy, (_, work, flops, kept) in alone().items():
        assert any(one != other for one, other in pairwise(work)), policy
        assert flops["done"] < 0.95 * flops["full"]
        assert kept > 0


@pytest.mark.parametrize("degrees", [Degrees(1, 1, 1), Degrees(2, 1, 1)], ids=str)
def test_the_account_knows_the_bytes(degrees):
    """Both branches of one process, and one of two ranks."""
    sizes, branches = read_sizes("wan-tiny"), 2 // degrees.cfg
    for policy, (*_, kept) in alone().items():
        planned = memory_of(sizes, config(policy), degrees).resident["block caches"]
        extra = 45 * 192 * 4 * (policy == "fbcache")  # the first block's residual, of one branch
        assert planned == (kept - extra) * branches // 2 + extra, policy


def test_branches_on_two_ranks_change_nothing():
    for made in gang(2, videos_on, tuple(POLICIES), {"mesh.cfg": 2}):
        for policy, (latents, work, flops, kept) in alone().items():
            assert np.array_equal(made[policy][0], latents), policy
            assert made[policy][1:3] == (work, flops), policy
            assert kept / 2 <= made[policy][3] < kept


@pytest.mark.parametrize(
    "mesh",
    [{"mesh.ulysses": 2, "mesh.cfg": 1}, pytest.param({"mesh.kv": 2, "mesh.cfg": 1}, marks=pytest.mark.slow)],
    ids=str,
)
def test_ranks_that_share_the_tokens(mesh):
    policies = tuple(policy for policy in POLICIES if policy != "toca")
    for made in gang(2, videos_on, policies, mesh):
        for policy in policies:
            latents, work, flops, _ = alone()[policy]
            assert np.abs(made[policy][0] - latents).max() <= 1e-4 * np.abs(latents).max(), policy
            assert made[policy][1:3] == (work, flops), policy


def videos_on(policies, mesh):
    return videos(policies, **mesh)


def refused():
    with pytest.raises(UserError, match="policy toca chooses tokens inside the blocks") as caught:
        Engine(config("toca", **{"mesh.ulysses": 2}))
    return str(caught.value)


def test_toca_needs_all_tokens_of_a_branch():
    assert all("kv 1 x ulysses 2: start 1 rank" in sentence for sentence in gang(2, refused))


@pytest.mark.parametrize(
    ("policy", "boundaries"),
    # The last is before decoding. The methods that keep sums, differences or residuals have no other.
    [("toca", [4, 8, 10]), *((policy, [10]) for policy in ("teacache", "magcache", "fbcache", "taylorseer"))],
)
def test_going_on_from_a_snapshot(policy, boundaries):
    shelf = Shelf()
    engine = Engine(config(policy))
    latents = engine.generate(PROMPT, seed=1, snapshots=shelf).latents
    assert list(shelf.kept) == boundaries
    for step in boundaries:
        again = engine.generate(PROMPT, seed=1, snapshots=Shelf(shelf.kept[step]))
        assert torch.equal(again.latents, latents)
        assert again.record["resumed_from_step"] == step
