"""Index arithmetic between latent positions, tokens and blocks."""

import dataclasses

import numpy as np
import pytest
import torch

from jano_dist.tokens.grid import TokenGrid, block_counts, block_slices, expand_blocks
from tests.unit import reference

WAN = {"patch": (1, 2, 2), "block": (7, 6, 8)}


@pytest.mark.parametrize(
    ("latent", "shape", "count", "blocks"),
    [
        ((21, 60, 104), (21, 30, 52), 32_760, (3, 10, 13)),  # 832x480x81 frames
        ((21, 90, 160), (21, 45, 80), 75_600, (3, 15, 20)),  # 1280x720x81 frames
        ((13, 44, 80), (13, 22, 40), 11_440, (2, 8, 10)),  # cut off in T and H
    ],
)
def test_wan_sizes(latent, shape, count, blocks):
    grid = TokenGrid(latent=latent, **WAN)
    assert tuple(grid.shape) == shape
    assert grid.count == count
    assert tuple(grid.blocks) == blocks


def test_a_block_may_fill_the_latent():
    grid = TokenGrid(latent=(3, 4, 6), patch=(1, 2, 2), block=(3, 4, 6))
    assert tuple(grid.blocks) == (1, 1, 1)


def test_a_patch_may_span_frames():
    grid = TokenGrid(latent=(4, 4, 6), patch=(2, 2, 3), block=(1, 1, 1))
    assert tuple(grid.shape) == (2, 2, 2)
    assert grid.count == 8


def test_grid_is_frozen():
    grid = TokenGrid(latent=(1, 4, 4), patch=(1, 2, 2), block=(1, 2, 2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        grid.latent = (1, 2, 2)


@pytest.mark.parametrize("latent", [(3, 4, 4), (2, 5, 4), (2, 4, 7)])
def test_latent_must_be_divisible_by_the_patch(latent):
    with pytest.raises(
        ValueError, match=r"patches of \(2, 2, 2\): choose a size that is divisible by VAE stride"
    ):
        TokenGrid(latent=latent, patch=(2, 2, 2), block=(1, 1, 1))


@pytest.mark.parametrize("block", [(3, 4, 4), (2, 5, 4), (2, 4, 5), (0, 4, 4), (2, -1, 4), (2, 4, 0)])
def test_block_must_fit_the_latent(block):
    with pytest.raises(
        ValueError, match=r"latent of \(2, 4, 4\) \(T, H, W\): choose a smaller policy.block or a"
    ):
        TokenGrid(latent=(2, 4, 4), patch=(1, 2, 2), block=block)


@pytest.mark.parametrize(
    "cut",
    [
        lambda: TokenGrid(latent=(2, 4), patch=(1, 2, 2), block=(1, 2, 2)),
        lambda: TokenGrid(latent=(2, 4, 4), patch=(1, 2), block=(1, 2, 2)),
        lambda: TokenGrid(latent=(2, 4, 4), patch=(1, 2, 2), block=(1, 2)),
        lambda: block_counts((2, 4, 4, 4), (1, 2, 2)),
        lambda: block_slices((2, 4, 4), (1, 2, 2, 2), (0, 0, 0)),
        lambda: expand_blocks(torch.zeros(2, 2, 2), (2, 4), (1, 2, 2)),
    ],
)
def test_a_size_has_three_numbers(cut):
    """A forgotten or additional one is refused, not ignored."""
    with pytest.raises(ValueError, match=r"zip\(\) argument"):
        cut()


def test_expand_repeats_each_block_and_cuts_the_border():
    values = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    expanded = expand_blocks(values, (1, 3, 5), (1, 2, 3))
    assert expanded.tolist() == [[[1, 1, 1, 2, 2], [1, 1, 1, 2, 2], [3, 3, 3, 4, 4]]]


def test_expand_keeps_integers():
    levels = torch.tensor([[[1]], [[3]]], dtype=torch.uint8)
    expanded = expand_blocks(levels, (3, 1, 1), (2, 1, 1))
    assert expanded.dtype == torch.uint8
    assert expanded.flatten().tolist() == [1, 1, 3]


def test_expand_works_where_the_values_are():
    values = torch.ones(1, 1, 1)
    with torch.device("meta"):  # where anything made on the default device would be
        assert (
            expand_blocks(values, (2, 2, 2), (2, 2, 2)).tolist() == torch.ones(2, 2, 2, device="cpu").tolist()
        )


@pytest.mark.parametrize(
    ("latent", "block"),
    [((4, 6, 8), (2, 3, 4)), ((5, 7, 9), (2, 3, 4)), ((1, 4, 4), (1, 4, 3)), ((3, 2, 2), (1, 1, 1))],
)
def test_expand_agrees_with_the_reference(latent, block):
    shape = reference.empty_blocks(latent, block).shape
    values = torch.from_numpy(np.random.default_rng(0).random(shape))
    expanded = expand_blocks(values, latent, block)
    assert tuple(expanded.shape) == latent
    assert np.array_equal(expanded.numpy(), reference.expand_blocks(values.numpy(), latent, block))
