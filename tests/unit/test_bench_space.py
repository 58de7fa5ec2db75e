"""What `tune` may choose from, and what it drops before any run."""

import pytest

from jano_dist import load_config
from jano_dist.bench.cases import Case, full_config, preset_case
from jano_dist.bench.search import Candidate, Target
from jano_dist.bench.space import AS_IS, FEWER, MOST, Prediction, affordable, candidates, prune, spread
from jano_dist.config import config_names, preset_names

# A distilled model's four whole steps are nothing to tune.
TUNED = [name for name in config_names() if load_config(name).sampling.steps > 8]


@pytest.fixture(scope="module", params=TUNED)
def named(request):
    base = load_config(request.param)
    rows = [
        preset_case(f"preset {row}", base, load_config(request.param, preset=row))
        for row in preset_names(request.param)
    ]
    return base, candidates(base, rows)


class TestCandidates:
    def test_each_is_another_valid_config_and_none_the_full_one(self, named):
        base, every = named
        configs = [Case(each.name, each.changes).config(base) for each in every]
        assert len({config.model_dump_json() for config in configs}) == len(every) <= MOST
        assert full_config(base) not in configs
        assert len({each.name for each in every}) == len(every)

    def test_all_policies_and_all_controls(self, named):
        base, every = named
        assert {"jano", "forecast", "uniform", FEWER} <= {each.family for each in every}
        assert {each.family for each in every if each.control} == {FEWER, "uniform"}
        steps = {Case("", each.changes).config(base).sampling.steps for each in every if each.family == FEWER}
        assert {round(base.sampling.steps * share) for share in (0.5, 0.44)} <= steps
        assert all(
            Case("", each.changes).config(base).policy.name == "full"
            for each in every
            if each.family == FEWER
        )

    def test_the_config_as_it_is(self, named):
        base, every = named
        (own,) = [each for each in every if each.name == AS_IS]
        made = Case(own.name, own.changes).config(base)
        assert made.policy == base.policy
        assert made.sampling == base.sampling

    def test_other_settings_of_the_policy_stay(self, named):
        """Score, block and warm-up are the model's; only what is searched changes."""
        base, every = named
        for each in every:
            policy = Case(each.name, each.changes).config(base).policy
            if policy.name == "jano" and "policy.warmup" not in each.changes:  # which a preset may set
                assert (policy.score, policy.block, policy.warmup) == (
                    base.policy.score,
                    base.policy.block,
                    base.policy.warmup,
                )

    @pytest.mark.parametrize("steps", [2, 3, 4, 8, 12, 20])
    def test_few_steps(self, small, steps):
        base = load_config(small, policy="full", overrides={"sampling.steps": steps})
        for each in candidates(base):
            config = Case(each.name, each.changes).config(base)
            assert config.sampling.steps <= steps
            if each.family in ("forecast", "uniform") and steps >= 8:
                assert config.policy.warmup + config.policy.cooldown < steps


class TestSpread:
    def test_families_in_turn_and_from_the_middle(self):
        every = [Candidate(f"a{n}", "a") for n in range(5)] + [Candidate("b0", "b")]
        predicted = {f"a{n}": Prediction(1 - n / 10) for n in range(5)} | {"b0": Prediction(0.5)}
        names = [each.name for each in spread(every, predicted)]
        # By work a4 a3 a2 a1 a0: the middle, then the middles of the two halves, then the rest.
        assert names == ["a2", "b0", "a3", "a0", "a4", "a1"]

    def test_nothing_is_lost(self):
        every = [Candidate(f"{family}{n}", family) for family in "abc" for n in range(7)]
        assert sorted(each.name for each in spread(every, {})) == sorted(each.name for each in every)
        assert spread([], {}) == []


def one(name, work, error=None, family="a"):
    return Candidate(name, family), Prediction(work, error)


def dropped(*rows, target=Target(psnr=30)):  # noqa: B008 - frozen
    return set(prune([each for each, _ in rows], {each.name: own for each, own in rows}, target))


class TestPrune:
    def test_more_work_for_more_error(self):
        assert dropped(one("good", 0.5, -30), one("bad", 0.6, -28)) == {"bad"}

    def test_not_by_less_than_a_decibel(self):
        assert dropped(one("good", 0.5, -30), one("alike", 0.6, -29.5)) == set()

    def test_what_takes_less_work_stays(self):
        assert dropped(one("good", 0.5, -30), one("fast", 0.4, -20)) == set()

    def test_of_equal_work_the_better_stays(self):
        assert dropped(one("worse", 0.5, -30), one("better", 0.503, -30.2)) == {"worse"}

    def test_of_two_alike_one_stays(self):
        assert dropped(one("first", 0.5, -30), one("second", 0.5, -30)) == {"second"}

    def test_families_are_not_compared(self):
        assert dropped(one("a", 0.5, -30), one("b", 0.6, -20, family="b")) == set()

    def test_what_cannot_be_foretold_stays(self):
        assert dropped(one("a", 0.5, None), one("b", 0.6, None)) == set()

    def test_what_saves_nothing(self):
        assert dropped(one("a", 0.5, -10), one("b", 1.0, -99)) == {"b"}

    def test_too_slow_for_a_speedup(self):
        rows = [one(f"fast {n}", 0.3 + n / 100, -n, family=str(n)) for n in range(8)]
        assert dropped(*rows, one("slow", 0.6, -60, family="s"), target=Target(speedup=2)) == {"slow"}

    def test_where_nothing_is_fast_enough_the_fastest_stay(self):
        rows = [one(f"{n}", 0.5 + n / 100, None, family=str(n)) for n in range(12)]
        assert dropped(*rows, target=Target(speedup=9)) == {"8", "9", "10", "11"}

    def test_the_config_as_it_is_stays(self):
        assert dropped(one("good", 0.5, -30), one(AS_IS, 0.6, -10)) == set()


class TestAffordable:
    def test_counts_the_runs_of_every_rung(self):
        """4 candidates of half the work: 2 prompts x (1 + 4/2) + 2 prompts x (1 + 2/2), 10 s each: 100 s."""
        every = [Candidate(str(n), "a") for n in range(4)]
        predicted = {str(n): Prediction(0.5) for n in range(4)}
        facts = {"prompts": [2, 4], "full_cost": 10.0}
        assert affordable(every, predicted, seconds=100.0, **facts) == 4
        assert affordable(every, predicted, seconds=99.9, **facts) == 3
        assert affordable(every, predicted, seconds=0.0, **facts) == 1
