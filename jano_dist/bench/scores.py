"""Scores that foretell where the work will be, the truth they are judged by, and how.

Those that a policy can use are in `tokens/complexity.py`; here are their rivals. All score blocks, higher is
more work. Shapes: W warm-up steps, S steps, C channels, latent T x H x W, blocks nt x nh x nw.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import spearmanr
from torch import Tensor

from jano_dist.tokens.complexity import (
    ACTIVE,
    MODERATE,
    STATIC,
    block_means,
    block_scores,
    last_change,
    smooth_spread,
    smoothed,
    token_levels,
)
from jano_dist.tokens.grid import Shape3, TokenGrid, block_counts, block_slices, every_block

HIGH = 0.25  # cycles per position: half of the highest frequency there is


@dataclass(frozen=True)
class Warmup:
    """What a score may look at.

    Attributes:
        velocities: [W, C, T, H, W'], guided, of each step.
        latents: [W, C, T, H, W'], before each step.
        sigmas: [W], the noise level of each step.
    """

    velocities: Tensor
    latents: Tensor
    sigmas: Tensor

    def clean(self) -> Tensor:
        """The estimates of the finished latent, x - sigma v (flow matching): [W, C, T, H, W']."""
        return self.latents - self.sigmas.view(-1, 1, 1, 1, 1) * self.velocities


Score = Callable[[Warmup, Shape3], Tensor]


def changes(values: Tensor) -> Tensor:
    """The norm over channels of each step's change: [S, C, T, H, W] -> [S - 1, T, H, W]."""
    norms: Tensor = values.float().diff(dim=0).norm(dim=1)
    return norms


def work_left(velocities: Tensor, warmup: int, block: Shape3) -> Tensor:
    """The truth: how much the velocity still changes after the warm-up, in a run that computes everything.

    The sum over the steps i after the warm-up of the block's mean of |v_i - v_(i-1)|, norms over channels.

    Args:
        velocities: [S, C, T, H, W] of the whole run. warmup: steps of it that a score may see.

    Returns:
        [nt, nh, nw].
    """
    return block_means(changes(velocities[warmup - 1 :]).sum(0), block)


def mean_change(seen: Warmup, block: Shape3) -> Tensor:
    """The mean over the warm-up steps of |v_i - v_(i-1)|."""
    return block_means(changes(seen.velocities).mean(0), block)


def late_change(seen: Warmup, block: Shape3) -> Tensor:
    """The same, each change weighted by its number: the later, the more."""
    each = changes(seen.velocities)
    weights = torch.arange(1, len(each) + 1, device=each.device).view(-1, 1, 1, 1)
    return block_means((weights * each).sum(0) / weights.sum(), block)


def clean_change(seen: Warmup, block: Shape3) -> Tensor:
    """How far the estimate of the finished latent moved in the last step."""
    return block_means(changes(seen.clean())[-1], block)


def bend(seen: Warmup, block: Shape3) -> Tensor:
    """How far the last velocity is from the line, in sigma, through the two before it."""
    if len(seen.velocities) < 3:
        return block_means(changes(seen.velocities)[-1], block)
    (first, middle, last), (s0, s1, s2) = seen.velocities[-3:].float(), seen.sigmas[-3:]
    line = middle + (middle - first) * (s2 - s1) / (s1 - s0)
    return block_means((last - line).norm(dim=0), block)


def noise_spread(seen: Warmup, block: Shape3) -> Tensor:
    """RAS (arXiv 2502.10389): the standard deviation of the predicted noise over a position's channels. Its
    code computes the patches where it is lowest, so less is more here."""
    return -block_means(seen.velocities[-1].float().std(dim=0), block)


def spread(seen: Warmup, block: Shape3) -> Tensor:
    """The same the other way round."""
    return -noise_spread(seen, block)


def smooth_change(seen: Warmup, block: Shape3) -> Tensor:
    """`last_change`, each block drawn towards its neighbours."""
    return smoothed(block_means(changes(seen.velocities)[-1], block))


def change_and_detail(seen: Warmup, block: Shape3) -> Tensor:
    """`last_change` times the root of how much the estimate of the finished latent varies within a block,
    smoothed: what still moves, and where there is something to draw. A policy does not see the latent."""
    change = block_means(changes(seen.velocities)[-1], block)
    return smoothed(change * _varies(seen.clean()[-1], block).sqrt())


def change_and_gain(seen: Warmup, block: Shape3) -> Tensor:
    """The same from velocities alone: v = noise - estimate, so the first minus the last is what the estimate
    has gained since the first step, when it had no detail."""
    change = block_means(changes(seen.velocities)[-1], block)
    gained = seen.velocities[0].float() - seen.velocities[-1].float()
    return smoothed(change * _varies(gained, block).sqrt())


def _varies(values: Tensor, block: Shape3) -> Tensor:
    """The standard deviation within each block, the mean over channels: [C, T, H, W] -> [nt, nh, nw]."""
    latent: Shape3 = tuple(values.shape[1:])  # type: ignore[assignment]
    counts = block_counts(latent, block)
    found = torch.zeros(counts)
    for index in every_block(counts):
        t, h, w = block_slices(latent, block, index)
        found[index] = values[:, t, h, w].float().flatten(1).std(dim=1, correction=0).mean()
    return found


def fft_velocity(seen: Warmup, block: Shape3) -> Tensor:
    """The energy of the last velocity's high frequencies within each block."""
    return _high_energy(seen.velocities[-1], block)


def fft_clean(seen: Warmup, block: Shape3) -> Tensor:
    """The same of the last estimate of the finished latent."""
    return _high_energy(seen.clean()[-1], block)


def _high_energy(values: Tensor, block: Shape3) -> Tensor:
    """Mean over channels of the energy above `HIGH` along at least one axis: [C, T, H, W] -> [nt, nh, nw]."""
    latent: Shape3 = tuple(values.shape[1:])  # type: ignore[assignment]
    counts = block_counts(latent, block)
    energy = torch.zeros(counts)
    for index in every_block(counts):
        t, h, w = block_slices(latent, block, index)
        piece = values[:, t, h, w].float()
        spectrum = torch.fft.fftn(piece, dim=(1, 2, 3), norm="ortho").abs().square()
        axes = [torch.fft.fftfreq(size).abs() >= HIGH for size in piece.shape[1:]]
        high = axes[0][:, None, None] | axes[1][:, None] | axes[2]
        # By the positions of the block, or those cut off by the border would seem poor.
        energy[index] = (spectrum * high.to(spectrum.device)).sum() / piece.numel()
    return energy


SCORES: dict[str, Score] = {
    "last_change": lambda seen, block: last_change(seen.velocities, block),
    "published": lambda seen, block: block_scores(seen.velocities, block),
    "fft velocity": fft_velocity,
    "fft estimate": fft_clean,
    "RAS spread": noise_spread,
    "RAS spread, reversed": spread,
    "mean change": mean_change,
    "late change": late_change,
    "estimate change": clean_change,
    "bend": bend,
    "smooth change": smooth_change,
    "smooth_spread": lambda seen, block: smooth_spread(seen.velocities, block),
    "change and detail": change_and_detail,
    "change and gain": change_and_gain,
}


def three_levels(scores: Tensor, *, active: float, moderate: float) -> Tensor:
    """Levels at given shares of the blocks: the highest are active, the next moderate, the rest static.

    Args:
        scores: [nt, nh, nw]; of equal ones the first count as lower.

    Returns:
        uint8 [nt, nh, nw].
    """
    count = scores.numel()
    ranks = scores.flatten().argsort(stable=True).argsort()
    least_active = count - round(active * count)
    least_moderate = least_active - round(moderate * count)
    levels = torch.full((count,), STATIC, dtype=torch.uint8)
    levels[ranks.cpu() >= least_moderate] = MODERATE
    levels[ranks.cpu() >= least_active] = ACTIVE
    return levels.reshape(scores.shape)


def rank_correlation(scores: Tensor, truth: Tensor) -> float:
    """Spearman's, over blocks; 0 where all scores are alike, which foretells nothing."""
    if scores.unique().numel() == 1 or truth.unique().numel() == 1:
        return 0.0
    return float(spearmanr(scores.flatten().cpu(), truth.flatten().cpu()).statistic)


def accuracy(levels: Tensor, truth: Tensor) -> float:
    """The share of the blocks whose level is the true one."""
    return float((levels == truth).float().mean())


def token_map(levels: Tensor, grid: TokenGrid) -> Tensor:
    """Levels of blocks [nt, nh, nw] -> the complexity map uint8 [N] that a policy would make of them."""
    return token_levels((levels.float() - STATIC) / (ACTIVE - STATIC), grid, 0.25, 0.75)
