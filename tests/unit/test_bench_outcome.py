"""Figures of many runs against closed values."""

import math

import pytest

from jano_dist.bench.cases import Case
from jano_dist.bench.outcome import Outcome, figures, summary


def outcome(psnr, *, work=0.5, seconds=2.0, full=4.0, flicker=0.9, prompt="a"):
    return Outcome(
        case="x",
        prompt=prompt,
        seed=0,
        config={},
        seconds={"denoise": seconds, "whole": seconds + 1},
        full_seconds=None if full is None else {"denoise": full, "whole": full + 1},
        work=work,
        kinds=["full"],
        tokens=[1.0],
        levels={},
        quality={"psnr": psnr, "ssim": None, "flip": 0.1, "lpips": None, "flicker": flicker},
    )


FULL = outcome(math.inf, work=1.0, seconds=4.0, flicker=0.95)


def test_figures_of_one():
    found = figures(outcome(40.0), FULL)
    expected = {"work": 0.5, "speedup_flops": 2, "speedup": 2, "speedup_whole": 5 / 3, "psnr": 40.0}
    expected |= {"ssim": None, "flip": 0.1, "lpips": None, "flicker": 0.9}
    assert found == {**expected, "flicker_change": pytest.approx(-0.05)}


def test_each_figure_has_its_own_worst_end():
    pairs = [(outcome(p, work=w, seconds=s), FULL) for p, w, s in ((40, 0.5, 2), (30, 0.4, 1), (44, 0.6, 4))]
    found = summary(pairs)
    assert found["psnr"] == {"mean": 38, "median": 40, "worst": 30, "videos": 3}
    assert found["work"]["worst"] == 0.6
    assert found["speedup"] == {"mean": 7 / 3, "median": 2, "worst": 1, "videos": 3}
    assert found["lpips"] is None


def test_equal_frames_are_counted_and_not_averaged():
    found = summary([(outcome(math.inf), FULL), (outcome(30.0, prompt="b"), FULL)])
    assert found["psnr"] == {"mean": 30, "median": 30, "worst": 30, "videos": 2, "identical": 1}
    assert found["worst_video"] == {"prompt": "b", "seed": 0}
    assert summary([(outcome(math.inf), FULL)])["psnr"] == {"videos": 1, "identical": 1}


def test_seconds_of_two_processes_make_no_speedup():
    found = summary([(outcome(40.0, full=None), FULL), (outcome(40.0), FULL)])
    assert found["speedup"] == {"mean": 2, "median": 2, "worst": 2, "videos": 1}


@pytest.mark.parametrize(
    ("case", "family"),
    [
        (Case("a", {"policy.name": "jano", "policy.warmup": 3}), "jano"),
        (Case("a", {"policy.name": "jano"}, rearrange="random"), "jano, random map"),
        (Case("a", {}, like="b"), "fewer steps"),
        (Case("a", {"policy.name": "full", "sampling.steps": 3}), "fewer steps"),
        (Case("a", {"policy.name": "full", "model.dtype": "bfloat16"}), "floor"),
        (Case("a", {"policy.name": "uniform", "policy.velocity": "hold"}), "uniform, held"),
        (Case("a", {"policy.name": "uniform", "policy.velocity": "forecast"}), "uniform, extrapolated"),
        (Case("a", {"policy.warmup": 3}), "other settings"),
    ],
)
def test_families(case, family):
    assert case.family == family
