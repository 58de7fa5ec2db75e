"""What stored velocities foretell, against plain loops and against real runs."""

import math

import pytest
import torch
from scipy.stats import spearmanr

from jano_dist import load_config
from jano_dist.bench.cases import Case
from jano_dist.bench.replay import predict, replay, to_latent, to_rows
from jano_dist.bench.runs import Runs
from jano_dist.policies import make_policy

STEPS, LATENT, PATCH = 12, (2, 4, 6), (1, 2, 2)
PROMPTS = (
    "a red ball moves left over a navy striped background",
    "a green ring moves up over a white background",
)
UNIFORM = {"name": "uniform", "warmup": 3, "cooldown": 1}


@pytest.fixture(scope="module")
def stored():
    """Velocities [S, C, T, H, W] that bend slowly, and sigmas."""
    generator = torch.Generator().manual_seed(0)
    first, slope, bend = torch.randn(3, 5, *LATENT, generator=generator)
    sigmas = torch.linspace(1, 0, STEPS + 1) ** 1.3
    times = sigmas[:-1, None, None, None, None]
    return first + slope * times + bend * (3 * times).sin(), sigmas


def built(settings):
    return make_policy(settings, steps=STEPS, latent=LATENT, patch=PATCH)


def drift(taken, true, sigmas):
    """dB of what is added to the latent over what the full run adds, in one sum each."""
    steps = (sigmas[1:] - sigmas[:-1])[:, None, None, None, None]
    added, path = (steps * (taken - true)).sum(0), (steps * true).sum(0)
    return 20 * math.log10(added.norm() / path.norm())


class TestRows:
    @pytest.mark.parametrize("patch", [(1, 2, 2), (2, 1, 3), (1, 1, 1)])
    def test_there_and_back(self, patch):
        latent = torch.arange(3 * 2 * 4 * 6.0).reshape(3, 2, 4, 6)
        rows = to_rows(latent, patch)
        assert rows.shape == (2 * 4 * 6 // math.prod(patch), 3 * math.prod(patch))
        assert torch.equal(to_latent(rows, (2, 4, 6), patch), latent)

    def test_tokens_in_natural_order(self):
        places = torch.arange(2 * 4 * 6).reshape(1, 2, 4, 6)
        rows = to_rows(places, PATCH)
        assert rows[0].tolist() == [0, 1, 6, 7]
        assert rows[1].tolist() == [2, 3, 8, 9]
        assert rows[3].tolist() == [12, 13, 18, 19]  # the next row of tokens
        assert rows[6].tolist() == [24, 25, 30, 31]  # the next frame


class TestReplay:
    def test_full(self, stored):
        found = replay(built({"name": "full"}), *stored, PATCH)
        assert (found.work, found.error) == (1.0, -200.0)

    def test_held(self, stored):
        """After three steps every second one is computed, and the last; each other has its predecessor's."""
        velocities, sigmas = stored
        computed = [0, 1, 2, 4, 6, 8, 10, 11]
        taken = torch.stack([velocities[max(c for c in computed if c <= i)] for i in range(STEPS)])
        found = replay(built({**UNIFORM, "interval": 2, "velocity": "hold"}), velocities, sigmas, PATCH)
        assert found.work == len(computed) / STEPS
        assert found.error == pytest.approx(drift(taken, velocities, sigmas), abs=1e-3)

    def test_tokens_of_a_map(self, stored):
        """Half of the video stands still, and is computed in every third step only."""
        velocities, sigmas = stored[0].clone(), stored[1]
        velocities[:, :, 0] = velocities[:1, :, 0]  # the first frame's never change
        velocities[:, :, 0] += 1e-3 * stored[0][:, :, 0]
        settings = {
            "name": "jano", "score": "last_change", "block": (1, 4, 6), "temporal_weight": 0.7, "warmup": 3,
            "cooldown": 0, "static_threshold": 0.5, "static_interval": 3, "moderate_threshold": 0.5,
            "moderate_interval": 3, "enhance": {"strength": 0.0, "distance": 1}, "velocity": "hold",
        }  # fmt: skip
        found = replay(built(settings), velocities, sigmas, PATCH)
        taken = velocities.clone()
        for step in range(3, STEPS):
            taken[step, :, 0] = velocities[step - (step - 3) % 3, :, 0]
        assert found.work == (3 + 3 + 6 / 2) / STEPS
        assert found.error == pytest.approx(drift(taken, velocities, sigmas), abs=1e-3)

    def test_a_line_is_foretold(self):
        """Velocities on a line in sigma: extrapolated they are exact, held they are not."""
        sigmas = torch.linspace(1, 0, STEPS + 1) ** 1.3
        slope = torch.randn(5, *LATENT, generator=torch.Generator().manual_seed(1))
        velocities = 1 + slope * sigmas[:-1, None, None, None, None]
        errors = {
            word: replay(built({**UNIFORM, "interval": 3, "velocity": word}), velocities, sigmas, PATCH).error
            for word in ("forecast", "hold")
        }
        assert errors["forecast"] < -100 < -40 < errors["hold"]

    def test_other_noise_levels_are_not_stored(self, stored):
        facts = {"runs": [stored[0]], "sigmas": stored[1], "patch": PATCH}
        found = predict({"name": "full"}, steps=9, **facts)
        assert (found.work, found.error) == (0.75, None)

    def test_what_does_not_fit(self, stored):
        facts = {"runs": [stored[0]], "sigmas": stored[1], "patch": PATCH}
        with pytest.raises(ValueError, match="12 steps leave nothing"):
            predict({**UNIFORM, "warmup": 11, "interval": 2, "velocity": "hold"}, steps=STEPS, **facts)

    def test_means_over_runs(self, stored):
        velocities, sigmas = stored
        settings = {**UNIFORM, "interval": 3, "velocity": "hold"}
        other = velocities.flip(1) * torch.linspace(1, 2, STEPS)[:, None, None, None, None]
        each = [replay(built(settings), run, sigmas, PATCH) for run in (velocities, other)]
        both = predict(settings, steps=STEPS, runs=[velocities, other], sigmas=sigmas, patch=PATCH)
        assert both.error == pytest.approx((each[0].error + each[1].error) / 2)
        assert each[0].error != each[1].error


class TestAgainstRealRuns:
    @pytest.fixture(scope="class")
    def runs(self, small):
        return Runs(load_config(small, policy="full", overrides={"sampling.steps": 20}), velocities=True)

    def test_work_and_order(self, runs):
        """Of ten settings that skip steps: the work to a hundredth, and the order of the damage."""
        cases = [
            {
                "policy.name": "uniform",
                "policy.warmup": 4,
                "policy.interval": interval,
                "policy.velocity": word,
            }
            for interval in (2, 3, 4, 6)
            for word in ("hold", "forecast")
        ] + [
            {"policy.name": "forecast", "policy.warmup": 4, "policy.tau": tau, "policy.max_interval": 8}
            for tau in (0.2, 0.6)
        ]
        scheduler = runs.base.model.scheduler(20, None, runs.base.latent_shape)
        fulls = [runs.full(prompt, 0).velocities for prompt in PROMPTS]
        foretold, measured = [], []
        for changes in cases:
            case = Case("c", changes)
            settings = case.config(runs.config).policy.model_dump()
            facts = {"runs": fulls, "sigmas": scheduler.sigmas, "patch": PATCH, "steps": 20}
            prediction = predict(settings, **facts)
            outcomes = [runs.measure(case, prompt, 0) for prompt in PROMPTS]
            work = sum(outcome.work for outcome in outcomes) / len(PROMPTS)
            assert prediction.work == pytest.approx(work, abs=0.04)
            foretold.append(prediction.error)
            measured.append(-sum(outcome.psnr for outcome in outcomes))
        assert spearmanr(foretold, measured).statistic > 0.8
