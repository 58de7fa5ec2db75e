"""wan-tiny's sampler stays in a regime that real models are in; see benchmarks/regime.py."""

import pytest
import torch

from benchmarks.regime import came_true, relative_change
from jano_dist import load_config
from jano_dist.bench.runs import Runs
from training.wan_tiny.judge import held_out_scenes


@pytest.mark.slow
def test_velocities_settle_within_four_steps_and_captions_hold():
    scenes = held_out_scenes(4, 1, seed=3)
    runs = Runs(load_config("wan-tiny"), velocities=True)
    runs.prepare([scene.caption() for scene in scenes])
    changes, right = [], []
    for seed, scene in enumerate(scenes):
        full = runs.full(scene.caption(), seed)
        changes.append(relative_change(full.velocities))
        right.append(came_true(scene, full))
    mean = torch.tensor(changes).mean(0)
    assert mean.shape == (49,)
    assert mean[3:].max() < 0.2  # the fourth change, from the fourth step to the fifth, and all after it
    assert torch.tensor(changes)[:, 3:].max() < 0.3
    assert all(right)


def test_relative_change():
    """By hand: a vector of length 5, then twice it, then the negative of that."""
    first = torch.zeros(1, 1, 1, 2)
    first[0, 0, 0] = torch.tensor([3.0, 4.0])
    assert relative_change(torch.stack([first, 2 * first, -2 * first])) == [0.5, 2.0]
