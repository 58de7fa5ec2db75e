"""Velocity history -> block scores -> complexity map (DESIGN, "the method, in facts").

Shapes: S warm-up steps, C channels, latent T x H x W, blocks nt x nh x nw.
"""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from jano_dist.tokens.grid import (
    Shape3,
    TokenGrid,
    block_counts,
    block_slices,
    every_block,
    expand_blocks,
)

STATIC, MODERATE, ACTIVE = 1, 2, 3
_EDGES = ((0, 0, 0, 0, 1, 1), (0, 0, 1, 1, 0, 0), (1, 1, 0, 0, 0, 0))  # one block on both ends of T, H, W


def block_scores(velocities: Tensor, block: Shape3, temporal_weight: float = 0.7) -> Tensor:
    """The published score (arXiv 2603.00519): how much the inner structure of a block still moves.

    In each block and step take the pairwise L2 distances (over channels) between positions, along
    time for each spatial position and over space for each frame. Dynamics is the mean absolute
    change of these matrices between step i and step i + S//2, over i and all entries.

    Args:
        velocities: [S, C, T, H, W], the guided velocity of each warm-up step.
        block: (bt, bh, bw) latent positions.
        temporal_weight: weight of the temporal part; the spatial part has the rest.

    Returns:
        float32 [nt, nh, nw] in 0..1 (min-max over blocks).

    Raises:
        ValueError: fewer than two steps.
    """
    if velocities.shape[0] < 2:
        raise ValueError("a score needs the velocities of at least 2 warm-up steps: raise policy.warmup")
    latent = _latent(velocities)
    counts = block_counts(latent, block)
    raw = torch.zeros(counts, device=velocities.device)
    for index in every_block(counts):
        t, h, w = block_slices(latent, block, index)
        positions = velocities[:, :, t, h, w].float()  # [S, C, t, h, w]
        spatial = _dynamics(positions.permute(0, 2, 3, 4, 1).flatten(2, 3))  # frames of [h*w, C]
        if positions.shape[2] == 1:  # a single frame has no temporal structure
            raw[index] = spatial
            continue
        temporal = _dynamics(positions.permute(0, 3, 4, 2, 1).flatten(1, 2))  # positions of [t, C]
        raw[index] = temporal_weight * temporal + (1 - temporal_weight) * spatial
    return _min_max(raw)


def last_change(velocities: Tensor, block: Shape3) -> Tensor:
    """Per block, the mean norm (over channels) of the last velocity minus the last but one.

    Args:
        velocities: [S, C, T, H, W]; only the last two steps are read.
        block: (bt, bh, bw) latent positions.

    Returns:
        float32 [nt, nh, nw] in 0..1 (min-max over blocks).

    Raises:
        ValueError: fewer than two steps.
    """
    return _min_max(block_means(_last_change(velocities), block))


def smooth_spread(velocities: Tensor, block: Shape3) -> Tensor:
    """`last_change` times the root of how much the last velocity differs between channels, smoothed.

    A flow velocity is noise minus the finished latent, and noise differs between channels everywhere alike:
    where the velocity differs more there is something to draw. Found by `jano-dist bench recognition`.

    Args:
        velocities: [S, C, T, H, W]; only the last two steps are read.
        block: (bt, bh, bw) latent positions.

    Returns:
        float32 [nt, nh, nw] in 0..1 (min-max over blocks).

    Raises:
        ValueError: fewer than two steps.
    """
    change = block_means(_last_change(velocities), block)
    spread = block_means(velocities[-1].float().std(dim=0, correction=0), block)
    return _min_max(smoothed(change * spread.sqrt()))


def smoothed(scores: Tensor) -> Tensor:
    """A third of each block's score, a third of its two neighbours' in time, a third of its four's in space.

    A neighbour beyond the border is the block itself. [nt, nh, nw] -> the same.
    """
    t, h, w = (F.pad(scores[None, None], edges, mode="replicate")[0, 0] for edges in _EDGES)
    time = (t[:-2] + t[2:]) / 2
    space = (h[:, :-2] + h[:, 2:] + w[..., :-2] + w[..., 2:]) / 4
    return (scores + time + space) / 3


def block_means(values: Tensor, block: Shape3) -> Tensor:
    """The mean of each block: [T, H, W] -> [nt, nh, nw], over the positions that exist at the border."""
    latent = _latent(values)
    counts = block_counts(latent, block)
    means = torch.zeros(counts, device=values.device)
    for index in every_block(counts):
        means[index] = values[block_slices(latent, block, index)].mean()
    return means


def enhance(scores: Tensor, strength: float = 0.8, distance: int = 1) -> Tensor:
    """Raise holes inside active regions, time slice by time slice.

    A component of low blocks that the contour of an active region surrounds is most likely part of
    it (the inside of an object whose outline moves). Blocks of such a component within `distance`
    of the contour gain `strength * mean contour score * exp(-d / (distance / 2))`.

    Args:
        scores: [nt, nh, nw] from `block_scores` or `last_change`.
        strength: 0 switches it off; published 0.8.
        distance: in blocks (Euclidean); published 1 for Wan, 2 for Flux.

    Returns:
        [nt, nh, nw], a new tensor; values may exceed 1.
    """
    if strength == 0:
        return scores.clone()
    slices = [_enhance_slice(s, strength, distance) for s in scores.double().cpu().numpy()]
    return torch.from_numpy(np.stack(slices)).to(scores)


def token_levels(
    scores: Tensor, grid: TokenGrid, static_threshold: float, moderate_threshold: float
) -> Tensor:
    """Block scores -> complexity map.

    A threshold of 0 switches its level off: with both at 0 every token is active.

    Args:
        scores: [nt, nh, nw].
        grid: the latent's patches and blocks.
        static_threshold: scores up to here are static.
        moderate_threshold: scores up to here are moderate, the rest is active.

    Returns:
        uint8 [N] in natural (t, h, w) order; a token takes the level most of its latent positions
        have, the higher one on a tie.

    Raises:
        ValueError: thresholds out of order or outside 0..1.
    """
    if not 0 <= static_threshold <= moderate_threshold <= 1:
        raise ValueError(
            f"thresholds must satisfy 0 <= static <= moderate <= 1, not {static_threshold} and "
            f"{moderate_threshold}: set policy.static_threshold and policy.moderate_threshold in that order"
        )
    levels = torch.full_like(scores, ACTIVE, dtype=torch.uint8)
    if moderate_threshold > 0:
        levels[scores <= moderate_threshold] = MODERATE
    if static_threshold > 0:
        levels[scores <= static_threshold] = STATIC
    positions = expand_blocks(levels, grid.latent, grid.block)  # [T, H, W]
    (t, h, w), (pt, ph, pw) = grid.shape, grid.patch
    per_token = positions.reshape(t, pt, h, ph, w, pw).permute(0, 2, 4, 1, 3, 5).reshape(grid.count, -1)
    votes = torch.stack([(per_token == level).sum(1) for level in (ACTIVE, MODERATE, STATIC)])
    return (ACTIVE - votes.argmax(0)).to(torch.uint8)  # argmax takes the first, so the higher level, on a tie


def _last_change(velocities: Tensor) -> Tensor:
    """The norm over channels of the last velocity minus the last but one: [S, C, T, H, W] -> [T, H, W]."""
    if velocities.shape[0] < 2:
        raise ValueError("a score needs the velocities of at least 2 warm-up steps: raise policy.warmup")
    change: Tensor = (velocities[-1].float() - velocities[-2].float()).norm(dim=0)
    return change


def _latent(velocities: Tensor) -> Shape3:
    t, h, w = velocities.shape[-3:]
    return t, h, w


def _dynamics(points: Tensor) -> Tensor:
    """Mean absolute change of the pairwise distances: [S, groups, points, C] -> scalar."""
    # The exact form: the matrix-product form of cdist loses digits where distances are small.
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    lag = distances.shape[0] // 2
    return (distances[lag:] - distances[: distances.shape[0] - lag]).abs().mean()


def _min_max(raw: Tensor) -> Tensor:
    """Normalise over blocks. Where all blocks are alike none is simpler: all 1, or all 0 if nothing moves."""
    low, high = raw.min(), raw.max()
    if high > low:
        return (raw - low) / (high - low)
    return torch.ones_like(raw) if high > 0 else torch.zeros_like(raw)


def _enhance_slice(scores: np.ndarray, strength: float, distance: int) -> np.ndarray:
    """One time slice [nh, nw] of `enhance`."""
    if scores.size < 2:
        return scores.copy()
    contour = scores > scores.mean() + 0.3 * scores.std(ddof=1)
    if not contour.any():
        return scores.copy()
    to_contour = ndimage.distance_transform_edt(~contour)
    inside = scores < scores.mean()
    inside[[0, -1], :] = inside[:, [0, -1]] = False
    components, count = ndimage.label(inside, structure=np.ones((3, 3)))
    raised = scores.copy()
    for component in (components == label for label in range(1, count + 1)):
        surroundings = ndimage.binary_dilation(component) & ~component
        if component.sum() < 2 or (to_contour[surroundings] <= 2).mean() < 0.3:
            continue
        near = component & (to_contour <= distance)
        raised[near] += strength * scores[contour].mean() * np.exp(-to_contour[near] / (distance / 2))
    return raised
