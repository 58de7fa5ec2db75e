"""Settings of the policies that reuse what blocks computed: names, defaults and refusals."""

import math

import pytest
import torch

from jano_dist import load_config
from jano_dist.config.policies import BLOCK_POLICIES
from jano_dist.config.published import MAGCACHE, TEACACHE
from jano_dist.degrees import Degrees, check_policy
from jano_dist.errors import UserError
from jano_dist.reuse import METHODS
from jano_dist.reuse.base import Agreement
from jano_dist.reuse.stack import nearest
from jano_dist.reuse.toca import cross_entropies


def load(policy, **settings):
    named = {f"policy.{key}": value for key, value in settings.items()}
    return load_config("wan-tiny", policy=policy, overrides=named).policy


def test_every_policy_has_a_method_and_settings():
    assert set(BLOCK_POLICIES) == set(METHODS)


@pytest.mark.parametrize("name", list(TEACACHE))
def test_published_polynomials_by_name(name):
    policy = load("teacache", coefficients=name)
    assert policy.coefficients == TEACACHE[name]["coefficients"]
    assert policy.embedding == ("projected" if name.endswith("-projected") else "time")
    assert load("teacache", coefficients=name, first_steps=7).first_steps == 7
    # What run.json holds is the same policy again.
    assert type(policy).model_validate(policy.model_dump(mode="json")) == policy


def test_an_unknown_model_is_taken_as_it_is():
    """p(x) = x."""
    assert load("teacache").coefficients == (1.0, 0.0)


@pytest.mark.parametrize("name", list(MAGCACHE))
def test_measured_ratios_by_name(name):
    ratios = load("magcache", ratios=name).ratios
    assert len(ratios) == 50
    assert ratios[0] == 1
    assert all(0.5 < ratio < 1.5 for ratio in ratios)


@pytest.mark.parametrize(
    ("policy", "settings", "words"),
    [
        ("magcache", {}, "policy magcache needs the model's magnitude ratios: set policy.ratios to"),
        ("magcache", {"ratios": "wan3"}, "there are no ratios 'wan3': choose one of wan-tiny"),
        ("teacache", {"coefficients": "wan"}, "there are no coefficients 'wan': choose one of identity"),
        ("teacache", {"coefficients": []}, "policy.coefficients"),
        ("teacache", {"thresold": 1}, "unknown key 'policy.thresold' (did you mean 'policy.threshold'?)"),
        ("taylorseer", {"interval": 0}, "policy.interval should be greater than or equal to 1, not 0"),
        ("pab", {"timesteps": [1, 2, 3]}, "policy.timesteps"),
        ("toca", {"ratio": 1.5}, "policy.ratio should be less than or equal to 1, not 1.5"),
    ],
    ids=str,
)
def test_refusals(policy, settings, words):
    with pytest.raises(UserError) as caught:
        load(policy, **settings)
    assert words in str(caught.value)


@pytest.mark.parametrize("policy", list(METHODS))
def test_blocks_are_not_fetched_ahead(policy):
    ratios = {"policy.ratios": "wan2.1-14b"} if policy == "magcache" else {}
    with pytest.raises(UserError, match=f"policy {policy} skips blocks, .* set model.weights to replicated"):
        load_config("wan-tiny", policy=policy, overrides={"model.weights": "group_offload", **ratios})


def test_toca_needs_a_whole_branch():
    check_policy("toca", Degrees(2, 1, 1), block_caches=True)
    check_policy("teacache", Degrees(2, 2, 3), block_caches=True)
    with pytest.raises(UserError, match="not cfg 1 x kv 2 x ulysses 1: start 1 rank, or 2 with guidance"):
        check_policy("toca", Degrees(1, 2, 1), block_caches=True)


class Coordinated:
    """A mesh whose coordinator always says 7."""

    def decide(self, *values):
        return (7,)


def test_an_agreement_is_asked_once_a_step_and_the_coordinators():
    agreement, asked = Agreement(Coordinated()), []
    for step in (0, 0, 1, 1):
        assert agreement.ask(step, lambda step=step: asked.append(step) or 3) == 7
    assert asked == [0, 1]


@pytest.mark.parametrize(
    ("length", "wanted"),
    [(5, [0, 1, 2, 3, 4]), (3, [0, 2, 4]), (9, [0, 0, 1, 2, 2, 2, 3, 4, 4]), (1, [4])],
)
def test_ratios_for_another_number_of_steps(length, wanted):
    """Places 0, 0.5, 1, ...; halves go to the even one."""
    assert nearest([0, 1, 2, 3, 4], length) == wanted


def test_entropy_of_even_and_of_sharp_attention():
    """Queries of 0 attend evenly: log L. A key that answers alone: nothing."""
    even, sharp = torch.zeros(1, 2, 4), torch.full((1, 2, 4), 100.0)
    keys = torch.zeros(5, 2, 4)
    keys[3] = 1.0
    found = cross_entropies(torch.cat([even, sharp]), keys)
    assert found[0] == pytest.approx(math.log(5), abs=1e-5)
    assert found[1] == pytest.approx(0, abs=1e-5)
