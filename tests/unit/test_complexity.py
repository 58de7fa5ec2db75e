"""From the history of velocities to one level per token."""

import math

import numpy as np
import pytest
import torch

from jano_dist.tokens.complexity import (
    ACTIVE,
    MODERATE,
    STATIC,
    block_scores,
    enhance,
    last_change,
    smooth_spread,
    token_levels,
)
from jano_dist.tokens.grid import TokenGrid
from tests.unit import reference

CASES = [  # latent, block
    pytest.param((4, 4, 6), (2, 2, 3), id="divisible"),
    pytest.param((5, 5, 7), (2, 3, 3), id="cut-off"),
    pytest.param((4, 3, 5), (3, 2, 2), id="last-slice-one-frame"),
    pytest.param((1, 5, 7), (1, 2, 3), id="image"),
    pytest.param((3, 4, 4), (1, 2, 2), id="one-frame-blocks"),
    pytest.param((4, 2, 3), (2, 1, 1), id="one-position-blocks"),
]


def noise(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def line(*steps):
    """Steps of one row of scalars -> velocities [S, 1, 1, 1, W]."""
    return torch.tensor(steps, dtype=torch.float64)[:, None, None, None, :]


def close(found, wanted, atol=1e-6):  # scores may be float32 whatever the velocities are
    wanted = np.asarray(wanted, dtype=np.float64)
    np.testing.assert_allclose(found.double().numpy(), wanted, rtol=0, atol=atol)


# -- block_scores: closed forms


def test_spatial_score_of_an_image():
    velocities = line([0, 0, 0, 0, 0, 0], [5, 5, 0, 1, 0, 4])  # distances inside each pair become 0, 1, 4
    close(block_scores(velocities, (1, 1, 2)), [[[0, 1 / 4, 1]]])


def test_distance_is_l2_over_channels():
    velocities = torch.zeros(2, 2, 1, 1, 6, dtype=torch.float64)
    velocities[1, :, 0, 0, 3] = torch.tensor([3.0, 4.0])  # 5 away, not 7
    velocities[1, 0, 0, 0, 5] = 10
    close(block_scores(velocities, (1, 1, 2)), [[[0, 1 / 2, 1]]])


def test_diagonal_counts_and_the_border_averages_over_what_exists():
    velocities = line([0] * 8, [0, 0, 0, 0, 0, 3, 0, 4])  # means 0, 12 / 9, 8 / 4
    close(block_scores(velocities, (1, 1, 3)), [[[0, 2 / 3, 1]]])


def weighing():
    """Three blocks: nothing changes; only between frames, by 2; only between positions, by 2."""
    velocities = torch.zeros(2, 1, 2, 1, 6, dtype=torch.float64)
    velocities[1, 0, 1, 0, 2:4] = 2
    velocities[1, 0, :, 0, 5] = 2
    return velocities


def test_default_weights_are_seven_to_three():
    close(block_scores(weighing(), (2, 1, 2)), [[[0, 1, 3 / 7]]])


@pytest.mark.parametrize(("weight", "wanted"), [(0.5, [0, 1, 1]), (1.0, [0, 1, 0]), (0.0, [0, 0, 1])])
def test_temporal_weight(weight, wanted):
    close(block_scores(weighing(), (2, 1, 2), temporal_weight=weight), [[wanted]])


def test_a_slice_of_one_frame_is_scored_by_space_alone():
    velocities = torch.zeros(2, 1, 3, 1, 4, dtype=torch.float64)
    velocities[1, 0, :2, 0, 3] = 2  # two frames: 0.3 of a spatial score of 1
    velocities[1, 0, 2, 0, 0] = 2  # one frame: all of it
    close(block_scores(velocities, (2, 1, 2)), [[[0, 0.3]], [[1, 0]]])


def test_an_image_ignores_the_temporal_weight():
    velocities = noise(3, 2, 1, 4, 4)
    close(block_scores(velocities, (1, 2, 2), 0.9), block_scores(velocities, (1, 2, 2), 0.0))


def test_lag_is_half_the_steps():
    swing = torch.zeros(4, 6)
    swing[:, 1] = torch.tensor([0, 1, 0, 1])  # steps 0 -> 2 and 1 -> 3: no change
    swing[:, 3] = torch.tensor([0, 0, 2, 2])  # (2 + 2) / 2
    swing[:, 5] = torch.tensor([0, 0, 0, 8])  # (0 + 8) / 2
    close(block_scores(line(*swing.tolist()), (1, 1, 2)), [[[0, 1 / 2, 1]]])


def test_rises_and_falls_do_not_cancel():
    velocities = line([0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 4])  # lag 1: |2| + |-2| against 0 + 4
    close(block_scores(velocities, (1, 1, 2)), [[[1, 1]]])


def test_what_does_not_change_scores_zero():
    velocities = noise(1, 3, 2, 4, 4).expand(6, -1, -1, -1, -1)
    assert not block_scores(velocities, (2, 2, 2)).any()


def test_a_shift_common_to_all_positions_is_no_change():
    velocities = torch.zeros(6, 3, 2, 4, 4) + torch.arange(6.0)[:, None, None, None, None]
    assert not block_scores(velocities, (2, 2, 2)).any()


def test_equal_blocks_are_all_ones():
    velocities = line([0, 0, 0, 0], [0, 3, 0, 3])
    close(block_scores(velocities, (1, 1, 2)), [[[1, 1]]])
    close(block_scores(noise(3, 2, 2, 2, 2), (2, 2, 2)), [[[1]]])


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("score", [block_scores, last_change, smooth_spread])
def test_a_history_needs_two_steps(score, steps):
    with pytest.raises(
        ValueError, match=r"^a score needs the velocities of at least 2 warm-up steps: raise policy"
    ):
        score(torch.zeros(steps, 2, 2, 4, 4), (2, 2, 2))


@pytest.mark.parametrize("score", [block_scores, last_change, smooth_spread])
def test_scores_are_where_the_velocities_are(score):
    velocities = noise(2, 3, 2, 4, 4)
    with torch.device("meta"):  # where anything made on the default device would be
        scores = score(velocities, (2, 2, 2))
    assert torch.equal(scores, score(velocities, (2, 2, 2)))


# -- block_scores: against the reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [2, 6, 7])
@pytest.mark.parametrize(("latent", "block"), CASES)
def test_block_scores_agree_with_the_reference(latent, block, steps, dtype):
    velocities = noise(steps, 3, *latent).to(dtype)
    scores = block_scores(velocities, block)
    wanted = reference.block_scores(velocities.numpy(), block)
    assert scores.dtype.is_floating_point
    assert tuple(scores.shape) == wanted.shape
    close(scores, wanted, 1e-5)


@pytest.mark.parametrize("latent", [(2, 6, 12), (2, 7, 12)])
def test_large_blocks_of_close_vectors_lose_no_precision(latent):
    """Distances through a matrix product would: their diagonal is no longer zero."""
    velocities = (30 + 0.1 * noise(4, 4, *latent)).float()
    wanted = reference.block_scores(velocities.numpy(), (2, 6, 6))
    close(block_scores(velocities, (2, 6, 6)), wanted, 1e-4)


def test_half_precision_velocities():
    velocities = noise(6, 4, 3, 5, 7).bfloat16()
    wanted = reference.block_scores(velocities.double().numpy(), (2, 2, 3))
    close(block_scores(velocities, (2, 2, 3)), wanted, 0.02)


def test_velocities_need_not_be_contiguous():
    velocities = noise(6, 3, 5, 4, 7).transpose(3, 4)
    wanted = reference.block_scores(velocities.numpy(), (2, 3, 2))
    close(block_scores(velocities, (2, 3, 2)), wanted, 1e-5)


# -- smooth_spread


@pytest.mark.parametrize(("latent", "block"), CASES)
def test_smooth_spread_agrees_with_the_reference(latent, block):
    velocities = noise(3, 3, *latent)
    close(smooth_spread(velocities, block), reference.smooth_spread(velocities.numpy(), block), 1e-5)


# -- last_change


def test_last_change_by_hand():
    velocities = torch.zeros(3, 2, 1, 1, 5, dtype=torch.float64)
    velocities[0] = 99  # only the last two steps count
    velocities[2, :, 0, 0, 2] = torch.tensor([3.0, 4.0])  # mean 5 / 2
    velocities[2, 0, 0, 0, 4] = -10  # cut-off block of one position: mean 10
    close(last_change(velocities, (1, 1, 2)), [[[0, 1 / 4, 1]]])


def test_last_change_of_nothing_and_of_everything_alike():
    assert not last_change(torch.ones(3, 2, 2, 4, 4), (2, 2, 2)).any()
    close(last_change(line([0, 0, 0, 0], [4, 0, 0, 4]), (1, 1, 2)), [[[1, 1]]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [2, 6])
@pytest.mark.parametrize(("latent", "block"), CASES)
def test_last_change_agrees_with_the_reference(latent, block, steps, dtype):
    velocities = noise(steps, 3, *latent).to(dtype)
    close(last_change(velocities, block), reference.last_change(velocities.numpy(), block), 1e-5)


# -- enhance


def drawn(picture):
    """'#' active, '.' still, '-' neither: at least the mean, but no contour."""
    value = {"#": 1.0, "-": 0.5, ".": 0.0}
    return torch.tensor([[value[mark] for mark in row] for row in picture.split()], dtype=torch.float64)[None]


RING = """
.......
.#####.
.#...#.
.#...#.
.#...#.
.#####.
.......
"""


def test_the_hole_of_a_ring_is_raised_next_to_it():
    raised = enhance(drawn(RING))
    wanted = drawn(RING)
    wanted[0, 2:5, 2:5] = 0.8 * math.exp(-2)  # distance 1 from the ring
    wanted[0, 3, 3] = 0  # distance 2: out of reach
    close(raised, wanted)


def test_a_larger_distance_reaches_the_middle():
    raised = enhance(drawn(RING), strength=0.5, distance=2)
    wanted = drawn(RING)
    wanted[0, 2:5, 2:5] = 0.5 * math.exp(-1)
    wanted[0, 3, 3] = 0.5 * math.exp(-2)
    close(raised, wanted)


def test_distance_is_euclidean():
    picture = """
    -------
    -#.----
    -..----
    -------
    -------
    -------
    """
    raised = enhance(drawn(picture), distance=2)
    assert raised[0, 2, 2].item() == pytest.approx(0.8 * math.exp(-math.sqrt(2)))
    assert raised[0, 1, 2].item() == pytest.approx(0.8 * math.exp(-1))


def test_the_boost_is_a_share_of_the_mean_contour():
    scores = drawn(RING)
    scores[scores > 0] = torch.tensor([0.75, 1.0] * 8, dtype=torch.float64)
    assert enhance(scores)[0, 2, 3].item() == pytest.approx(0.8 * 0.875 * math.exp(-2))


def test_what_lies_on_the_border_is_no_hole():
    scores = drawn("..... ##### ##### ##### .....")
    assert torch.equal(enhance(scores), scores)


def test_a_hole_as_high_as_the_mean_is_none():
    """16 blocks of 1, 9 of 7/16 and 24 of 1/16: exactly 7/16 in the mean."""
    scores = drawn(RING)
    scores[scores == 0] = 1 / 16
    scores[0, 2:5, 2:5] = 7 / 16
    assert scores.mean() == 7 / 16
    assert torch.equal(enhance(scores), scores)


def test_a_hole_of_one_block_stays():
    scores = drawn("....... .#####. .#####. .##.##. .#####. .#####. .......")
    assert torch.equal(enhance(scores), scores)


def test_blocks_that_touch_at_a_corner_are_one_hole():
    scores = drawn("....... .#####. .#.###. .##.##. .#####. .#####. .......")
    raised = enhance(scores)
    assert raised[0, 2, 2].item() == raised[0, 3, 3].item() == pytest.approx(0.8 * math.exp(-2))
    assert (raised != scores).sum() == 2


def test_three_of_ten_surrounding_blocks_near_the_contour_are_enough():
    scores = drawn("-------- -------- -------- -#....-- -------- -------- --------")
    raised = enhance(scores)
    assert raised[0, 3, 2].item() == pytest.approx(0.8 * math.exp(-2))
    assert (raised != scores).sum() == 1


def test_three_of_twelve_are_not():
    scores = drawn("-------- -------- -------- -#.....- -------- -------- --------")
    assert torch.equal(enhance(scores), scores)


def test_surroundings_share_an_edge_and_distance_two_is_near():
    scores = drawn("--###--- -------- -------- --....-- -------- -------- --------")  # again 3 of 10
    raised = enhance(scores, distance=3)
    close(raised[0, 3, 2:5], [0.8 * math.exp(-2)] * 3)
    assert (raised != scores).sum() == 3


def test_the_mean_of_a_slice_is_its_own():
    blank = torch.full((1, 7, 7), 0.9, dtype=torch.float64)
    raised = enhance(torch.cat([blank, drawn(RING), 0.5 * drawn(RING)]))
    close(raised[0:1], blank)
    close(raised[1:2], enhance(drawn(RING)))
    close(raised[2:3], 0.5 * enhance(drawn(RING)))


def test_contour_uses_the_sample_deviation():
    """The bar lies at 0.3033 with the population's deviation, at 0.3083 with the sample's."""
    scores = torch.zeros(1, 3, 4, dtype=torch.float64)
    scores[0, 0, :3] = torch.tensor([0.305, 1.0, 1.0])
    assert enhance(scores)[0, 1, 1].item() == pytest.approx(0.8 * math.exp(-2))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 5), (3, 4, 4)])
def test_a_slice_without_contour_is_unchanged(shape):
    scores = torch.full(shape, 0.5)
    assert torch.equal(enhance(scores), scores)


def test_no_strength_no_change():
    scores = noise(3, 9, 9).abs()
    assert torch.equal(enhance(scores, strength=0.0, distance=2), scores)


def test_scores_are_not_modified():
    scores = drawn(RING)
    enhance(scores)
    assert torch.equal(scores, drawn(RING))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("strength", "distance"), [(0.8, 1), (0.8, 2), (0.5, 3), (1.0, 1)])
@pytest.mark.parametrize(
    ("shape", "seed"), [((3, 10, 13), 1), ((1, 16, 16), 2), ((4, 5, 6), 3), ((2, 15, 20), 4)]
)
def test_enhance_agrees_with_the_reference(shape, seed, strength, distance, dtype):
    scores = torch.from_numpy(np.random.default_rng(seed).random(shape)).to(dtype)
    wanted = reference.enhance(scores.numpy(), strength, distance)
    assert np.any(wanted != scores.double().numpy())  # the case shows something
    assert enhance(scores, strength, distance).dtype == dtype
    close(enhance(scores, strength, distance), wanted)


def test_enhance_agrees_on_sparse_pictures():
    """Few high blocks, far apart: here some components qualify and others do not."""
    for seed in range(20):
        scores = torch.from_numpy(np.random.default_rng(seed).random((2, 12, 15)) ** 12)
        close(enhance(scores, distance=2), reference.enhance(scores.numpy(), distance=2))


# -- token_levels


def levels_of(scores, latent, patch, block, *thresholds):
    return token_levels(torch.tensor(scores), TokenGrid(latent=latent, patch=patch, block=block), *thresholds)


def test_levels_are_one_two_three():
    assert (STATIC, MODERATE, ACTIVE) == (1, 2, 3)


def test_a_threshold_belongs_to_the_lower_level():
    levels = levels_of([[[0.0, 0.25, 0.375, 0.5, 0.75]]], (1, 1, 5), (1, 1, 1), (1, 1, 1), 0.25, 0.5)
    assert levels.dtype == torch.uint8
    assert levels.tolist() == [1, 1, 2, 2, 3]


@pytest.mark.parametrize(
    ("static", "moderate", "wanted"),
    [
        (0.0, 0.0, [3, 3, 3]),
        (0.0, 0.5, [2, 2, 3]),
        (0.5, 0.5, [1, 1, 3]),
        (1.0, 1.0, [1, 1, 1]),
        (0.0, 1.0, [2, 2, 2]),
    ],
)
def test_thresholds_at_their_ends(static, moderate, wanted):
    assert (
        levels_of([[[0.0, 0.5, 1.0]]], (1, 1, 3), (1, 1, 1), (1, 1, 1), static, moderate).tolist() == wanted
    )


@pytest.mark.parametrize(
    ("positions", "wanted"),
    [
        ([0.0, 0.0, 0.0, 1.0], STATIC),
        ([0.0, 0.0, 0.4, 1.0], STATIC),  # two of four are the most
        ([0.4, 0.4, 0.0, 1.0], MODERATE),
        ([0.0, 0.0, 1.0, 1.0], ACTIVE),  # ties go up
        ([0.0, 0.4, 0.4, 0.0], MODERATE),
        ([0.4, 1.0, 0.4, 1.0], ACTIVE),
    ],
)
def test_a_token_takes_the_level_of_most_positions(positions, wanted):
    scores = [[positions[:2], positions[2:]]]
    assert levels_of(scores, (1, 2, 2), (1, 2, 2), (1, 1, 1), 0.2, 0.6).tolist() == [wanted]


def test_a_three_way_tie_goes_to_active():
    assert levels_of([[[0.4, 1.0, 0.0]]], (1, 1, 3), (1, 1, 3), (1, 1, 1), 0.2, 0.6).tolist() == [ACTIVE]


def test_tokens_come_in_natural_order():
    scores = [[[0.0, 0.4], [1.0, 0.0]], [[0.4, 0.4], [0.0, 1.0]]]
    levels = levels_of(scores, (2, 4, 4), (1, 2, 2), (1, 2, 2), 0.2, 0.6)
    assert levels.tolist() == [1, 2, 3, 1, 2, 2, 1, 3]


@pytest.mark.parametrize(
    ("static", "moderate"), [(0.5, 0.3), (-0.1, 0.5), (0.1, 1.1), (1.5, 2.0), (-0.2, -0.1)]
)
def test_thresholds_out_of_order_or_range(static, moderate):
    with pytest.raises(ValueError, match="threshold"):
        levels_of([[[0.0]]], (1, 1, 1), (1, 1, 1), (1, 1, 1), static, moderate)


@pytest.mark.parametrize("thresholds", [(0.3, 0.7), (0.0, 0.5), (0.4, 0.4)])
@pytest.mark.parametrize(
    ("latent", "patch", "block"),
    [
        ((4, 8, 12), (1, 2, 2), (2, 4, 4)),
        ((5, 8, 10), (1, 2, 2), (2, 3, 3)),  # blocks and tokens out of step
        ((4, 6, 6), (2, 3, 2), (1, 1, 1)),
        ((1, 6, 10), (1, 2, 2), (1, 5, 3)),
    ],
)
def test_token_levels_agree_with_the_reference(latent, patch, block, thresholds):
    grid = TokenGrid(latent=latent, patch=patch, block=block)
    scores = torch.from_numpy(np.random.default_rng(5).random(tuple(grid.blocks)))
    levels = token_levels(scores, grid, *thresholds)
    assert levels.dtype == torch.uint8
    assert levels.tolist() == reference.token_levels(scores.numpy(), latent, patch, block, *thresholds)
