"""What `bench recognition` records against a plain loop over diffusers' own transformer and scheduler, and
its outcome against a run with the same map put in by hand."""

import pytest
import torch

from jano_dist import Engine, load_config
from jano_dist.bench.recognition import (
    ORACLE,
    RANDOM,
    Question,
    Regime,
    change_warmup,
    full_run,
    in_regime,
    measure,
)
from jano_dist.bench.scores import three_levels, token_map, work_left
from jano_dist.policies.base import Policy
from jano_dist.quality import psnr
from jano_dist.tokens.grid import TokenGrid
from jano_dist.tokens.schedule import Schedule

PROMPT, SEED, GUIDANCE, SHIFT, WARMUP = "a red ball moves left", 3, 3.0, 5.0, 3


@pytest.fixture(scope="module")
def config(small):
    return in_regime(load_config(small), Regime(GUIDANCE, SHIFT))


@pytest.fixture(scope="module")
def model(config):
    return Engine(config).model


@torch.inference_mode()
def plain_loop(pipeline, config):
    """Velocities and latents of every step, without any of our code."""
    texts = [
        pipeline.encode_prompt(text, do_classifier_free_guidance=False, max_sequence_length=32)[0]
        for text in (PROMPT, "")
    ]
    video = config.video
    latent = pipeline.prepare_latents(
        1, 16, video.height, video.width, video.frames, torch.float32, "cpu",
        torch.Generator().manual_seed(SEED),
    )  # fmt: skip
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, flow_shift=SHIFT)
    scheduler.set_timesteps(config.sampling.steps)
    velocities, latents = [], []
    for timestep in scheduler.timesteps:
        cond, uncond = (
            pipeline.transformer(
                hidden_states=latent,
                timestep=timestep.expand(1),
                encoder_hidden_states=text,
                return_dict=False,
            )[0]
            for text in texts
        )
        guided = uncond + GUIDANCE * (cond - uncond)
        velocities.append(guided[0])
        latents.append(latent[0])
        latent = scheduler.step(guided, timestep, latent, return_dict=False)[0]
    return torch.stack(velocities), torch.stack(latents)


def test_the_truth_is_that_of_a_plain_loop(pipeline, config, model):
    full = full_run(config, model, PROMPT, SEED)
    velocities, latents = plain_loop(pipeline, config)
    torch.testing.assert_close(full.velocities, velocities, atol=2e-5, rtol=0)
    torch.testing.assert_close(full.latents, latents, atol=2e-5, rtol=0)
    t = 1000 * full.sigmas  # Wan's timesteps are its noise levels in thousandths
    scheduler = model.scheduler(config.sampling.steps, SHIFT, (1, 2, 2))
    torch.testing.assert_close(t, scheduler.timesteps.float(), atol=1.0, rtol=0)
    left = (velocities[WARMUP:] - velocities[WARMUP - 1 : -1]).norm(dim=1).sum(0)  # [T, H, W]
    blocks = left.reshape(2, 1, 2, 4, 2, 4).mean((1, 3, 5))  # of 1 x 4 x 4 positions
    torch.testing.assert_close(work_left(full.velocities, WARMUP, (1, 4, 4)), blocks, atol=1e-4, rtol=1e-4)


class ByHand(Policy):
    """Jano's schedule on a given map."""

    def __init__(self, policy, steps, levels):
        intervals = policy.static_interval, policy.moderate_interval
        self.schedule, self.levels = Schedule(steps, policy.warmup, policy.cooldown, *intervals), levels

    def decide(self, step):
        return self.schedule.kind(step)

    def observe(self, step, velocity):
        return self.levels if step == self.schedule.warmup - 1 else None

    def starts_afresh(self, step):
        return False


def test_figures_of_one_prompt(config, model):
    regime = Regime(GUIDANCE, SHIFT)
    question = Question(config, ((PROMPT, SEED),), (regime,), (WARMUP,), 0.25, 0.25, ("bend",))
    rows = {row["score"]: row for row in measure(question, model, regime, 0)["rows"]}
    oracle = rows[ORACLE]
    assert (oracle["rank_correlation"], oracle["accuracy"]) == (pytest.approx(1), 1)

    full = full_run(config, model, PROMPT, SEED)
    truth = work_left(full.velocities, WARMUP, (1, 4, 4))
    grid = TokenGrid((2, 8, 8), (1, 2, 2), (1, 4, 4))
    levels = token_map(three_levels(truth, active=0.25, moderate=0.25), grid)
    assert [int((levels == level).sum()) for level in (1, 2, 3)] == [16, 8, 8]
    own = change_warmup(config, WARMUP)
    policy = ByHand(own.policy, own.sampling.steps, levels)
    made = Engine(own, model=model, policies=lambda *_, **__: policy).generate(PROMPT, seed=SEED)
    assert oracle["psnr"] == pytest.approx(psnr(full.frames, made.frames), abs=1e-3)
    assert {name for name, row in rows.items() if row["psnr"] is not None} == {"bend", RANDOM, ORACLE}
