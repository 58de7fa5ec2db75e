"""How well does an early score foretell where the work is, and what is that worth?

For each prompt, guidance and shift one full run is made, and its velocities are kept: they are the truth
(`scores.work_left`), and what a score sees of it are the first of them. Beside the rank correlation and the
accuracy of the levels stands the outcome: PSNR of the video that jano makes with the score's map, all maps at
the same shares, beside a random map and that of the truth itself (`oracle`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jano_dist.bench.cases import full_config
from jano_dist.bench.scores import (
    SCORES,
    Warmup,
    accuracy,
    rank_correlation,
    three_levels,
    token_map,
    work_left,
)
from jano_dist.bench.stand_ins import Rearranged, recording
from jano_dist.config import Config, JanoPolicyConfig
from jano_dist.engine import Engine
from jano_dist.errors import UserError
from jano_dist.models import DiffusionModel
from jano_dist.policies import Policy, make_policy
from jano_dist.quality import psnr
from jano_dist.tokens.complexity import enhance
from jano_dist.tokens.grid import TokenGrid

RANDOM, ORACLE = "random map", "oracle"
_ENHANCED = ("last_change", "published")  # they are judged with the holes of regions raised, too
NAMES = (*SCORES, *(f"{name}, enhanced" for name in _ENHANCED))


class Regime(NamedTuple):
    """Where a run is made."""

    guidance: float
    shift: float | None  # None: the model's own


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        config: of the runs, with jano's schedule.
        prompts: of the videos, each with its seed.
        regimes, warmups: to go through.
        active, moderate: shares of the blocks.
        outcomes: scores with whose maps videos are made, beside those of the controls; none: no videos.
    """

    config: Config
    prompts: tuple[tuple[str, int], ...]
    regimes: tuple[Regime, ...]
    warmups: tuple[int, ...]
    active: float
    moderate: float
    outcomes: tuple[str, ...]

    def items(self) -> Iterator[tuple[Regime, int]]:
        """Regime and prompt's number of each full run, prompt by prompt."""
        for number, regime in product(range(len(self.prompts)), self.regimes):
            yield regime, number

    def as_json(self) -> dict[str, Any]:
        """What makes a folder of figures this question's."""
        facts = {"config": self.config.model_dump(mode="json"), "prompts": list(map(list, self.prompts))}
        lists = {"regimes": [list(regime) for regime in self.regimes], "warmups": list(self.warmups)}
        return {
            **facts,
            **lists,
            "active": self.active,
            "moderate": self.moderate,
            "outcomes": list(self.outcomes),
        }


@dataclass(frozen=True)
class FullRun:
    """A run that computed everything: velocities, latents before each step [S, C, T, H, W], frames."""

    velocities: Tensor
    latents: Tensor
    sigmas: Tensor
    frames: np.ndarray

    def warmup(self, steps: int) -> Warmup:
        """What a score sees."""
        return Warmup(self.velocities[:steps], self.latents[:steps], self.sigmas[:steps])


def measure(question: Question, model: DiffusionModel, regime: Regime, number: int) -> dict[str, Any]:
    """All figures of one prompt in one regime."""
    config = in_regime(question.config, regime)
    prompt, seed = question.prompts[number]
    full = full_run(config, model, prompt, seed)
    rows = []
    for warmup in question.warmups:
        own = change_warmup(config, warmup)
        outcome = _outcomes(own, model, prompt, seed, full) if question.outcomes else None
        rows += list(_rows(question, own, full, warmup, outcome, model.geometry.patch))
    return {**regime._asdict(), "prompt": prompt, "seed": seed, "rows": rows}


def in_regime(config: Config, regime: Regime) -> Config:
    """The config at another guidance and shift."""
    sampling = config.sampling.model_copy(update=regime._asdict())
    return config.model_copy(update={"sampling": sampling})


def change_warmup(config: Config, warmup: int) -> Config:
    """The config with another warm-up."""
    return config.model_copy(update={"policy": config.policy.model_copy(update={"warmup": warmup})})


def full_run(config: Config, model: DiffusionModel, prompt: str, seed: int) -> FullRun:
    """Make it. The latents follow from noise, scheduler and velocities, so none need be kept on the way."""
    velocities: list[Tensor] = []
    engine = Engine(full_config(config), model=model, policies=recording(velocities))
    made = engine.generate(prompt, seed=seed)
    latent = model.noise(engine.latent_shape, seed)
    scheduler = model.scheduler(config.sampling.steps, config.sampling.shift, engine.latent_shape)
    latents = []
    for velocity, timestep in zip(velocities, scheduler.timesteps, strict=True):
        latents.append(latent.cpu())
        given = velocity.to(latent.device)
        latent = scheduler.step(given[None], timestep, latent[None], return_dict=False)[0][0]
    sigmas = scheduler.sigmas[: len(latents)].float().cpu()
    return FullRun(torch.stack(velocities), torch.stack(latents), sigmas, made.frames)


def _rows(
    question: Question,
    config: Config,
    full: FullRun,
    warmup: int,
    outcome: Callable[[Tensor], float] | None,
    patch: tuple[int, int, int],
) -> Iterator[dict[str, Any]]:
    """A row for each score and control."""
    policy = config.policy
    assert isinstance(policy, JanoPolicyConfig)
    shares = {"active": question.active, "moderate": question.moderate}
    _, _, t, h, w = full.velocities.shape
    grid = TokenGrid((t, h, w), patch, policy.block)
    truth = work_left(full.velocities, warmup, policy.block)
    tried = (*question.outcomes, RANDOM, ORACLE)
    for name, scores in _all_scores(full.warmup(warmup), policy, truth):
        levels = three_levels(scores, **shares)
        yield {
            "warmup": warmup,
            "score": name,
            "rank_correlation": rank_correlation(scores, truth),
            "accuracy": accuracy(levels, three_levels(truth, **shares)),
            "psnr": outcome(token_map(levels, grid)) if outcome and name in tried else None,
        }


def _all_scores(seen: Warmup, policy: JanoPolicyConfig, truth: Tensor) -> Iterator[tuple[str, Tensor]]:
    strength = policy.enhance.model_dump()
    for name, score in SCORES.items():
        scores = score(seen, policy.block)
        yield name, scores
        if name in _ENHANCED and strength["strength"]:
            yield f"{name}, enhanced", enhance(scores, **strength)
    yield RANDOM, torch.rand(truth.shape, generator=torch.Generator().manual_seed(0))
    yield ORACLE, truth


def _outcomes(
    config: Config, model: DiffusionModel, prompt: str, seed: int, full: FullRun
) -> Callable[[Tensor], float]:
    """Complexity map -> PSNR in dB of the video that jano makes with it; the same map is tried once."""
    known: dict[bytes, float] = {}

    def outcome(levels: Tensor) -> float:
        key = levels.numpy().tobytes()
        if key not in known:

            def policies(*args: Any, **kwargs: Any) -> Policy:
                return Rearranged(make_policy(*args, **kwargs), lambda _: levels)

            made = Engine(config, model=model, policies=policies).generate(prompt, seed=seed)
            # 100 dB: equal frames, which have none, and means need a number.
            known[key] = min(100.0, psnr(full.frames, made.frames))
        return known[key]

    return outcome


def summarise(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Over prompts: a row for each regime, warm-up and score."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for item in items:
        for row in item["rows"]:
            key = item["guidance"], item["shift"], row["warmup"], row["score"]
            groups.setdefault(key, []).append(row)
    return [_summary(key, rows) for key, rows in groups.items()]


def _summary(key: tuple[Any, ...], rows: list[dict[str, Any]]) -> dict[str, Any]:
    found = [row["psnr"] for row in rows if row["psnr"] is not None]
    return {
        **dict(zip(("guidance", "shift", "warmup", "score"), key, strict=True)),
        "prompts": len(rows),
        "rank_correlation": fmean(row["rank_correlation"] for row in rows),
        "accuracy": median(row["accuracy"] for row in rows),
        "psnr_mean": fmean(found) if found else None,
        "psnr_worst": min(found) if found else None,
    }


def check_question(question: Question) -> None:
    """Refuse what cannot be measured.

    Raises:
        UserError: the policy is not jano, or steps, warm-ups and shares do not go together.
    """
    policy, steps = question.config.policy, question.config.sampling.steps
    unknown = [name for name in question.outcomes if name not in NAMES]
    if unknown:
        raise UserError(
            f"--outcomes {unknown[0]!r} is no score: give all, none, or some of {'; '.join(NAMES)}"
        )
    if not isinstance(policy, JanoPolicyConfig):
        raise UserError(f"recognition is of regions, which policy {policy.name} has none of: use jano")
    for warmup in question.warmups:
        if not 2 <= warmup < steps - policy.cooldown:
            raise UserError(
                f"--warmups {warmup} does not fit {steps} steps with {policy.cooldown} of cool-down: give "
                f"numbers from 2 to {steps - policy.cooldown - 1}"
            )
    if not (question.active > 0 and question.moderate >= 0 and question.active + question.moderate < 1):
        raise UserError(
            f"--active {question.active:g} and --moderate {question.moderate:g} leave no static blocks, or "
            "no active ones: give shares whose sum is below 1"
        )
