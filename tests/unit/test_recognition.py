"""Scores, truth and their comparison against plain numpy, and figures on cases small enough for a hand."""

import itertools

import numpy as np
import pytest
import torch

from jano_dist.bench.recognition import RANDOM, Question, Regime, check_question, summarise
from jano_dist.bench.scaling import spread_map
from jano_dist.bench.scores import (
    SCORES,
    Warmup,
    accuracy,
    bend,
    change_and_detail,
    change_and_gain,
    clean_change,
    fft_clean,
    fft_velocity,
    late_change,
    mean_change,
    noise_spread,
    rank_correlation,
    three_levels,
    token_map,
    work_left,
)
from jano_dist.config import load_config
from jano_dist.errors import UserError
from jano_dist.tokens import complexity
from jano_dist.tokens.grid import TokenGrid
from tests.unit.reference import boxes, empty_blocks, smoothed

BLOCK = (2, 3, 2)
SHAPE = (3, 6, 5)  # T, H, W; not all blocks are whole


def seen(steps=4, seed=0):
    random = torch.Generator().manual_seed(seed)
    velocities, latents = (torch.randn(steps, 3, *SHAPE, generator=random) for _ in range(2))
    return Warmup(velocities, latents, torch.linspace(1, 0.7, steps))


def means(values):
    """[T, H, W] -> blocks, by loops."""
    found = empty_blocks(SHAPE, BLOCK)
    for index, (t, h, w) in boxes(SHAPE, BLOCK).items():
        found[index] = np.mean([values[i, j, k] for i, j, k in itertools.product(t, h, w)])
    return found


def step_changes(values):
    """[S, C, T, H, W] -> the norm over channels of each step's change, by loops over steps."""
    array = values.double().numpy()
    return [np.sqrt(((after - before) ** 2).sum(0)) for before, after in itertools.pairwise(array)]


class TestTruth:
    def test_work_left(self):
        """All changes after the warm-up, the one from its last step to the next included."""
        velocities = seen(7).velocities
        changes = step_changes(velocities)
        expected = sum(means(changes[i]) for i in range(3, 6))  # v_4 - v_3 on, counted from 0
        np.testing.assert_allclose(work_left(velocities, 4, BLOCK), expected, rtol=1e-5)

    def test_nothing_left(self):
        velocities = torch.cat([seen(4).velocities, *[seen(4).velocities[-1:]] * 3])
        assert work_left(velocities, 4, BLOCK).abs().max() == 0


class TestScores:
    def test_mean_change(self):
        expected = np.mean([means(each) for each in step_changes(seen().velocities)], axis=0)
        np.testing.assert_allclose(mean_change(seen(), BLOCK), expected, rtol=1e-5)

    def test_late_change(self):
        first, second, third = (means(each) for each in step_changes(seen().velocities))
        expected = (first + 2 * second + 3 * third) / 6
        np.testing.assert_allclose(late_change(seen(), BLOCK), expected, rtol=1e-5)

    def test_the_estimate_of_a_straight_path_is_its_end(self):
        end, noise = torch.randn(2, 3, *SHAPE)
        sigmas = torch.tensor([1.0, 0.8, 0.3])
        latents = torch.stack([(1 - s) * end + s * noise for s in sigmas])
        straight = Warmup(torch.stack([noise - end] * 3), latents, sigmas)
        for estimate in straight.clean():
            torch.testing.assert_close(estimate, end, atol=1e-5, rtol=1e-5)
        assert clean_change(straight, BLOCK).max() < 1e-5

    def test_bend_of_a_line_is_nothing(self):
        sigmas, (start, slope) = torch.tensor([1.0, 0.9, 0.65]), torch.randn(2, 3, *SHAPE)
        line = torch.stack([start + s * slope for s in sigmas])
        assert bend(Warmup(line, line, sigmas), BLOCK).max() < 1e-5
        line[-1, 0] += 0.5  # one channel of every position
        torch.testing.assert_close(bend(Warmup(line, line, sigmas), BLOCK), torch.full((2, 2, 3), 0.5))

    def test_ras_computes_the_lowest_spread(self):
        values = seen().velocities[-1].double().numpy()
        expected = -means(values.std(0, ddof=1))
        np.testing.assert_allclose(noise_spread(seen(), BLOCK), expected, rtol=1e-5)

    def test_energy_is_that_of_the_alternating_part(self):
        """A constant has no high frequency; what alternates along an axis of even length has nothing else,
        and by Parseval its energy is its square."""
        flat, wave = torch.ones(1, 1, 2, 4, 4), torch.ones(1, 1, 2, 4, 4)
        wave[..., 1::2] = -1
        still, moving = (Warmup(v, torch.zeros_like(v), torch.zeros(1)) for v in (flat, 3 * wave))
        assert fft_velocity(still, (2, 4, 4)).item() == pytest.approx(0, abs=1e-6)
        assert fft_velocity(moving, (2, 4, 4)).item() == pytest.approx(9, rel=1e-5)
        assert fft_clean(moving, (2, 4, 4)).item() == 0  # its estimate is the latent, which is zero

    def test_detail(self):
        """Of a straight path the estimate is its end, and that is all that it has gained."""
        end, noise = torch.randn(3, *SHAPE), torch.randn(3, *SHAPE)
        sigmas = torch.tensor([1.0, 0.8, 0.3])
        latents = torch.stack([(1 - s) * end + s * noise for s in sigmas])
        paths = torch.stack([noise, noise - 0.5 * end, noise - end])  # of estimates 0, half the end, the end
        detail = empty_blocks(SHAPE, BLOCK)
        for index, (t, h, w) in boxes(SHAPE, BLOCK).items():
            inside = end[:, t][:, :, h][..., w].double().numpy()
            detail[index] = np.mean([channel.std() for channel in inside])
        expected = smoothed(means(step_changes(paths)[-1]) * np.sqrt(detail))
        for score in (change_and_detail, change_and_gain):
            np.testing.assert_allclose(score(Warmup(paths, latents, sigmas), BLOCK), expected, rtol=1e-4)

    def test_smoothed(self):
        scores = torch.rand(3, 4, 2)
        np.testing.assert_allclose(complexity.smoothed(scores), smoothed(scores.numpy()), rtol=1e-5)
        assert (complexity.smoothed(torch.full((1, 1, 1), 0.5)) == 0.5).all()

    @pytest.mark.parametrize("name", SCORES)
    def test_every_score_is_one_of_each_block(self, name):
        assert SCORES[name](seen(), BLOCK).shape == (2, 2, 3)

    @pytest.mark.parametrize("name", sorted(set(SCORES) - {"RAS spread", "RAS spread, reversed"}))
    def test_what_moves_most_is_highest(self, name):
        """A single block that changes, more in every step, and has something in it, the rest still."""
        velocities = torch.zeros(4, 3, 4, 6, 4)
        velocities[:, 0, 2:, 3:, 2:] = torch.arange(1, 5).view(4, 1, 1, 1) ** 2 * torch.randn(4, 2, 3, 2)
        found = SCORES[name](
            Warmup(velocities, torch.zeros_like(velocities), torch.linspace(1, 0.7, 4)), BLOCK
        )
        assert int(found.argmax()) == found.numel() - 1


class TestComparison:
    def test_three_levels_by_hand(self):
        scores = torch.tensor([0.9, 0.1, 0.5, 0.3, 0.7, 0.2, 0.6, 0.4, 0.8, 0.0]).reshape(1, 2, 5)
        levels = three_levels(scores, active=0.3, moderate=0.2)
        assert levels.flatten().tolist() == [3, 1, 2, 1, 3, 1, 2, 1, 3, 1]

    def test_accuracy_by_hand(self):
        found, truth = torch.tensor([3, 2, 1, 1]), torch.tensor([3, 1, 1, 2])
        assert accuracy(found, truth) == 0.5

    def test_rank_correlation(self):
        """Pearson's of the ranks; equal values share the mean of theirs."""
        scores, truth = torch.tensor([1.0, 3.0, 3.0, 7.0, 2.0]), torch.tensor([0.1, 0.2, 0.5, 0.4, 0.3])
        ranks = np.array([1, 3.5, 3.5, 5, 2]), np.array([1, 2, 5, 4, 3])
        assert rank_correlation(scores, truth) == pytest.approx(np.corrcoef(*ranks)[0, 1])
        assert rank_correlation(torch.ones(5), truth) == 0

    def test_token_map(self):
        grid = TokenGrid((1, 4, 8), (1, 2, 2), (1, 4, 4))
        assert token_map(torch.tensor([[[3, 1]]]), grid).reshape(2, 4).tolist() == [[3, 3, 1, 1]] * 2
        assert set(token_map(torch.tensor([[[2, 2]]]), grid).tolist()) == {2}

    def test_spread_map(self):
        levels = spread_map(1000, active=0.2, moderate=0.25)
        assert [int((levels == level).sum()) for level in (1, 2, 3)] == [550, 250, 200]

    def test_summary(self):
        def item(values):
            row = dict(zip(("rank_correlation", "accuracy", "psnr"), values, strict=True))
            return {"guidance": 3.0, "shift": 5.0, "rows": [{"warmup": 6, "score": "x", **row}]}

        (row,) = summarise([item((0.5, 0.9, 40.0)), item((0.6, 0.2, 30.0)), item((0.1, 0.4, 44.0))])
        assert row["rank_correlation"] == pytest.approx(0.4)
        assert row["accuracy"] == 0.4  # the median, as the paper gives it
        assert (row["psnr_mean"], row["psnr_worst"], row["prompts"]) == (38.0, 30.0, 3)


class TestQuestion:
    def question(self, policy="jano", **changes):
        facts = {
            "config": load_config("wan-tiny", policy=policy),
            "prompts": (("a ball", 0), ("a box", 1)),
            "regimes": (Regime(3.0, 1.0), Regime(3.0, 5.0)),
            "warmups": (4, 6),
            "active": 0.3,
            "moderate": 0.3,
            "outcomes": ("last_change",),
        }
        return Question(**{**facts, **changes})

    def test_every_prompt_in_every_regime(self):
        assert [(shift, n) for (_, shift), n in self.question().items()] == [
            (1.0, 0), (5.0, 0), (1.0, 1), (5.0, 1),
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"policy": "full"}, "use jano"),
            ({"warmups": (1,)}, "--warmups 1 does not fit"),
            ({"warmups": (6, 48)}, "--warmups 48 does not fit"),
            ({"outcomes": ("bend", "guess")}, "--outcomes 'guess' is no score"),
            ({"active": 0.7}, "leave no static blocks"),
            ({"active": 0.0}, "no active ones"),
        ],
    )
    def test_what_cannot_be_measured(self, changes, words):
        with pytest.raises(UserError, match=words):
            check_question(self.question(**changes))

    def test_a_random_map_is_named_in_the_plot(self):
        from jano_dist.bench import recognition_report

        rows = [
            {"guidance": 3.0, "shift": 5.0, "warmup": 6, "score": name, "psnr_mean": value}
            for name, value in ((RANDOM, 30.0), ("x", 34.0))
        ]
        assert recognition_report._over_random(rows[1], rows) == 4.0
