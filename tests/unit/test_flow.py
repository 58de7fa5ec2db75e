"""Predictions as flow velocities, where the truth is known: mixtures of Gaussians have an exact denoiser."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from scipy.stats import norm

from jano_dist.errors import UserError
from jano_dist.sampling.flow import Path
from jano_dist.tokens.complexity import block_scores, token_levels
from jano_dist.tokens.grid import TokenGrid

TRAINED = 4000  # steps of the tables below, so many that only the sampler's own step matters
KINDS = ("epsilon", "sample", "v_prediction")


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine_alpha(time):
    """alpha = cos(w), sigma = sin(w) with w = 1.55 time: smooth, and known everywhere."""
    return np.cos(1.55 * time)


def cosine_scheduler(steps, kind="epsilon", spacing="trailing"):
    """A DDIM sampler of that path; index k has time (k + 1) / TRAINED."""
    kept = cosine_alpha(np.arange(TRAINED + 1) / TRAINED) ** 2
    scheduler = DDIMScheduler(
        TRAINED, trained_betas=1 - kept[1:] / kept[:-1], prediction_type=kind, timestep_spacing=spacing,
        clip_sample=False,
    )  # fmt: skip
    scheduler.alphas_cumprod = torch.from_numpy(kept[1:])  # the same, in float64
    scheduler.set_timesteps(steps)
    return scheduler


class Mixture:
    """Data x0 of components N(mean[k], spread[k]^2), with what is known of it in closed form."""

    def __init__(self, means, spreads, weights):
        self.means, self.spreads, self.weights = map(
            np.asarray, (means, spreads, weights)
        )  # [K, D], [K], [K]

    def denoised(self, x, alpha, sigma):
        """E[x0 | x] for x [n, D]: each component's, weighted by how likely it made x."""
        variance = alpha**2 * self.spreads**2 + sigma**2
        off = x[:, None] - alpha * self.means
        log = np.log(self.weights) - (off**2).sum(-1) / (2 * variance) - x.shape[1] / 2 * np.log(variance)
        share = np.exp(log - log.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        each = self.means + (alpha * self.spreads**2 / variance)[:, None] * off
        return (share[..., None] * each).sum(1)

    def predicted(self, kind, x, alpha, sigma):
        """What a perfect model of a prediction type says."""
        data = self.denoised(x, alpha, sigma)
        eps = (x - alpha * data) / sigma
        return {"epsilon": eps, "sample": data, "v_prediction": alpha * eps - sigma * data}[kind]


PLANE = Mixture(
    [[2.0, 0, 1], [-1, 1, 0], [0, -2, 0.5], [0.3, 0.2, -2]], [0.2, 0.5, 0.1, 0.7], [0.4, 0.2, 0.3, 0.1]
)
LINE = Mixture([[-1.5], [0.4], [2.0]], [0.3, 0.6, 0.2], [0.5, 0.2, 0.3])


def relative_errors(mixture, exact, steps, kind):
    """|converted - exact| / |exact| at times 1, 3/4, 1/2, 1/4, at places where the noisy data lie."""
    scheduler = cosine_scheduler(steps, kind)
    path, errors = Path.of(scheduler), []
    for step in (0, steps // 4, steps // 2, 3 * steps // 4):
        time = 1 - step / steps
        alpha, sigma = np.cos(1.55 * time), np.sin(1.55 * time)
        own = noise(200, mixture.means.shape[1], seed=3).numpy()
        x = alpha * mixture.means[np.arange(200) % len(mixture.means)] + sigma * own
        given = torch.from_numpy(mixture.predicted(kind, x, alpha, sigma))
        velocity = path.velocity(given, torch.from_numpy(x), step).numpy()
        truth = exact(x, time)
        errors.append(np.linalg.norm(velocity - truth) / np.linalg.norm(truth))
    return np.array(errors)


def conditional_mean(x, time):
    """E[dx/dt | x] with the derivatives of cosine and sine."""
    alpha, sigma = np.cos(1.55 * time), np.sin(1.55 * time)
    data = PLANE.denoised(x, alpha, sigma)
    return 1.55 * (-sigma * data + alpha * (x - alpha * data) / sigma)


def transport(x, time):
    """In one dimension without any denoiser: mass is kept, so v = -(d cdf / dt) / density."""
    alpha, sigma = np.cos(1.55 * time), np.sin(1.55 * time)
    spread = np.sqrt(alpha**2 * LINE.spreads**2 + sigma**2)
    place = (x - alpha * LINE.means.T) / spread  # [n, K]
    spread_rate = (-alpha * sigma * LINE.spreads**2 + sigma * alpha) * 1.55 / spread
    place_rate = 1.55 * sigma * LINE.means.T / spread - place * spread_rate / spread
    density = (LINE.weights * norm.pdf(place) / spread).sum(1)
    return (-(LINE.weights * norm.pdf(place) * place_rate).sum(1) / density)[:, None]


@pytest.mark.parametrize(("mixture", "exact"), [(PLANE, conditional_mean), (LINE, transport)])
@pytest.mark.parametrize("kind", KINDS)
def test_velocity_is_that_of_the_mixture_to_first_order(mixture, exact, kind):
    errors = {steps: relative_errors(mixture, exact, steps, kind) for steps in (20, 40, 80, 160)}
    assert errors[160][1:].max() < 0.012
    for coarse, fine in ((20, 40), (40, 80), (80, 160)):
        np.testing.assert_allclose(errors[coarse] / errors[fine], 2, rtol=0.03)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("spacing", "steps", "offset"), [("leading", 50, 0), ("leading", 50, 1), ("trailing", 40, 0)]
)
def test_ddim_goes_along_the_velocity(kind, spacing, steps, offset):
    """DDIM's own step divided by its time is the velocity, whatever was predicted: nothing of it is ours."""
    scheduler = DDIMScheduler(
        prediction_type=kind, timestep_spacing=spacing, steps_offset=offset, clip_sample=False
    )
    scheduler.set_timesteps(steps)
    path = Path.of(scheduler)
    last = (
        steps - 1 if spacing == "trailing" else steps - 2
    )  # where leading, the last jumps to before the data
    for step in (0, 1, steps // 2, last):
        given, latent = noise(4, 3, seed=step), noise(4, 3, seed=step + 100)
        moved = scheduler.step(given, scheduler.timesteps[step], latent, return_dict=False)[0]
        wanted = (latent - moved) / (1 / steps)
        torch.testing.assert_close(path.velocity(given, latent, step), wanted, rtol=1e-4, atol=1e-4)


def test_the_last_step_goes_to_the_data():
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(50)
    path = Path.of(scheduler)
    assert (float(path.alphas[-1]), float(path.sigmas[-1]), float(path.times[-1])) == (1, 0, 0)
    alpha, sigma = (float(scheduler.alphas_cumprod[0]) ** 0.5, float(1 - scheduler.alphas_cumprod[0]) ** 0.5)
    eps, latent = noise(5), noise(5, seed=1)
    data = (latent - sigma * eps) / alpha
    wanted = (latent - data) * 1000  # from index 0 to the data is one of 1000 training steps
    torch.testing.assert_close(path.velocity(eps, latent, 49), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize(
    "scheduler_class", [DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler]
)
def test_straight_velocity_is_noise_minus_data(kind, schedule, scheduler_class):
    scheduler = scheduler_class(beta_schedule=schedule, prediction_type=kind)
    scheduler.set_timesteps(25)
    path, data, eps = Path.of(scheduler), noise(6, 2), noise(6, 2, seed=1)
    for step, index in enumerate(scheduler.timesteps):
        alpha = float(scheduler.alphas_cumprod[index].double().sqrt())
        sigma = np.sqrt(1 - alpha**2)
        latent = alpha * data + sigma * eps
        given = {"epsilon": eps, "sample": data, "v_prediction": alpha * eps - sigma * data}[kind]
        torch.testing.assert_close(
            path.straight_velocity(given, latent, step), eps - data, rtol=1e-6, atol=1e-6
        )


def test_straight_velocity_is_equation_one_on_the_straightened_path():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(30)
    path, given, latent = Path.of(scheduler), noise(7), noise(7, seed=1)
    total = path.alphas + path.sigmas
    time = path.sigmas / total
    straight = replace(path, alphas=1 - time, sigmas=time, times=time)
    for step in range(30):
        scaled = latent / float(total[step])
        wanted = straight.velocity(given, scaled, step)
        torch.testing.assert_close(path.straight_velocity(given, latent, step), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
        DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
    ],
)
def test_flow_predictions_pass_bit_by_bit(scheduler):
    scheduler.set_timesteps(12)
    path, given, latent = Path.of(scheduler), noise(9).bfloat16(), noise(9, seed=1).float()
    for step in range(12):
        assert path.straight_velocity(given, latent, step) is given
        assert float(path.sigmas[step]) == float(scheduler.sigmas[step])
        along = path.velocity(given.double(), latent.double(), step)  # equation 1 agrees
        torch.testing.assert_close(along, given.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_other_predictions_on_a_straight_path(kind):
    if kind == "v_prediction":
        pytest.skip("diffusers defines it for alpha^2 + sigma^2 = 1 only")
    scheduler = UniPCMultistepScheduler(prediction_type=kind, use_flow_sigmas=True, flow_shift=3.0)
    scheduler.set_timesteps(8)
    path, data, eps = Path.of(scheduler), noise(4), noise(4, seed=1)
    for step in range(1, 8):
        time = float(scheduler.sigmas[step])
        given, latent = {"epsilon": eps, "sample": data}[kind], (1 - time) * data + time * eps
        for velocity in (path.velocity, path.straight_velocity):
            torch.testing.assert_close(velocity(given, latent, step), eps - data, rtol=1e-6, atol=1e-6)


def test_noise_levels_fall_from_noise_to_data():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(50)
    path = Path.of(scheduler)
    assert 0.99 < float(path.sigmas[0]) < 1
    assert bool((path.sigmas.diff() < 0).all())
    assert bool((path.times.diff() < 0).all())
    wanted = (1 - scheduler.alphas_cumprod[scheduler.timesteps].double()).sqrt()
    assert torch.equal(path.sigmas[:-1], wanted)


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler(), DDIMScheduler(prediction_type="raw")])
def test_what_has_no_such_path_is_refused(scheduler):
    scheduler.set_timesteps(5)
    with pytest.raises(UserError, match="is not supported: put a DDIMScheduler"):
        Path.of(scheduler)


class Regions:
    """Latents [C, T, H, W] of blocks drawn independently: each is one of `modes[block]` templates, nearly.

    A block with one template is known from the first step; one with many is decided late. The contrast of
    the templates differs, too, and must not matter for what is known.
    """

    def __init__(self, channels=4, block=(2, 4, 4), counts=(2, 3, 4), seed=3):
        self.block, self.counts, self.channels = block, counts, channels
        blocks, width = int(np.prod(counts)), channels * int(np.prod(block))
        random = np.random.default_rng(seed)
        self.modes = random.permutation(np.resize([1, 1, 2, 4, 8, 16], blocks))
        contrast = random.uniform(0.2, 2, (blocks, 1, 1))
        common = random.standard_normal((blocks, 1, width))
        templates = contrast * (common + random.standard_normal((blocks, 16, width))) / 2**0.5
        self.mixtures = [
            Mixture(each[:modes], np.full(modes, 0.05), np.full(modes, 1 / modes))
            for each, modes in zip(templates, self.modes, strict=True)
        ]
        self.latent = tuple(edge * count for edge, count in zip(block, counts, strict=True))

    def rows(self, latent):
        """[C, T, H, W] -> [blocks, C * positions]."""
        (t, h, w), (nt, nh, nw) = self.block, self.counts
        boxes = latent.reshape(self.channels, nt, t, nh, h, nw, w).permute(1, 3, 5, 0, 2, 4, 6)
        return boxes.reshape(nt * nh * nw, -1)

    def volume(self, rows):
        """The inverse of `rows`."""
        (t, h, w), (nt, nh, nw) = self.block, self.counts
        boxes = rows.reshape(nt, nh, nw, self.channels, t, h, w).permute(3, 0, 4, 1, 5, 2, 6)
        return boxes.reshape(self.channels, *self.latent)

    def denoised(self, latent, alpha, sigma):
        """E[x0 | x] of the whole latent."""
        each = zip(self.mixtures, self.rows(latent).numpy(), strict=True)
        return self.volume(
            torch.from_numpy(np.concatenate([m.denoised(row[None], alpha, sigma) for m, row in each]))
        )


WARMUP = 12


@pytest.fixture(scope="module")
def ddim_run():
    """Latte's sampler and a perfect noise predictor: [(prediction, latent)] of the warm-up, and its path."""
    regions, scheduler = Regions(), DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False)
    scheduler.set_timesteps(50)
    path, latent, taken = Path.of(scheduler), noise(4, *regions.latent, seed=5), []
    for step, timestep in enumerate(scheduler.timesteps[:WARMUP]):
        alpha, sigma = float(path.alphas[step]), float(path.sigmas[step])
        eps = (latent - alpha * regions.denoised(latent, alpha, sigma)) / sigma
        taken.append((eps, latent))
        latent = scheduler.step(eps, timestep, latent, return_dict=False)[0]
    return regions, path, taken


@pytest.fixture(scope="module")
def flow_run(ddim_run):
    """The same process as a flow: FlowMatchEuler at the same ratios of noise to data, from the same noise."""
    regions, path, taken = ddim_run
    time = path.sigmas / (path.alphas + path.sigmas)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=time[:-1].numpy())
    latent, velocities = taken[0][1] / float((path.alphas + path.sigmas)[0]), []
    for step, timestep in enumerate(scheduler.timesteps[:WARMUP]):
        t = float(time[step])
        data = regions.denoised(latent, 1 - t, t)
        velocities.append((latent - data) / t)  # eps - x0, since x = x0 + t (eps - x0)
        latent = scheduler.step(velocities[-1], timestep, latent, return_dict=False)[0]
    return torch.stack(velocities)


def test_a_ddim_run_scores_as_the_flow_run_of_the_same_process(ddim_run, flow_run):
    regions, path, taken = ddim_run
    converted = torch.stack([path.straight_velocity(*each, step) for step, each in enumerate(taken)])
    scores, wanted = block_scores(converted, regions.block), block_scores(flow_run, regions.block)
    torch.testing.assert_close(scores, wanted, rtol=0, atol=1e-3)
    grid = TokenGrid(regions.latent, (1, 2, 2), regions.block)
    assert torch.equal(token_levels(scores, grid, 0.05, 0.3), token_levels(wanted, grid, 0.05, 0.3))
    known = torch.from_numpy(regions.modes == 1).reshape(regions.counts)
    assert float(scores[known].max()) < 0.01 < float(scores[~known].median())


def test_along_its_own_path_even_what_is_known_moves(ddim_run):
    """Why scores see the straight velocity: DDIM's own path speeds up, and contrast looks like change."""
    regions, path, taken = ddim_run
    along = torch.stack([path.velocity(*each, step) for step, each in enumerate(taken)])
    known = torch.from_numpy(regions.modes == 1).reshape(regions.counts)
    assert float(block_scores(along, regions.block)[known].max()) > 0.5
