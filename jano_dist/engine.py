"""The engine: built once from a config, then from prompt to video as often as one likes.

`Engine.generate` is the walk of docs/architecture.md: encode, noise, denoise, decode.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jano_dist import observe
from jano_dist.cache import KVCache, NoCache
from jano_dist.cache.kv import Cache
from jano_dist.config import Config
from jano_dist.errors import RunError, UserError
from jano_dist.mesh import Mesh
from jano_dist.models import Branch, Geometry, VideoModel, load_model, read_geometry
from jano_dist.observe import NullObserver, Observer, StepRecord
from jano_dist.policies import Policy, make_policy
from jano_dist.runtime import pick_device
from jano_dist.sampling.guidance import guidance_on, guide
from jano_dist.sampling.velocity import VelocityRows
from jano_dist.tokens.complexity import ACTIVE
from jano_dist.tokens.grid import Shape3
from jano_dist.tokens.plan import TokenPlan
from jano_dist.tokens.schedule import StepKind


@dataclass(frozen=True)
class Generation:
    """One finished video.

    Attributes:
        frames: uint8 [T, H, W, 3].
        latents: float32 [C, T', H', W'], the denoised latent.
        record: what `run.json` holds.
        levels: uint8 [tokens along T, H, W], the complexity map (all active where none was made).
    """

    frames: np.ndarray
    latents: Tensor
    record: dict[str, Any]
    levels: np.ndarray


@dataclass
class State:
    """Everything a step needs to go on. One per generation; a step replaces or writes every field."""

    latent: Tensor  # float32 [C, T, H, W]
    branches: list[Branch]  # cond, then uncond
    caches: list[Cache]  # one per branch; null until a map is known
    plan: TokenPlan
    velocity: VelocityRows
    levels: Tensor  # uint8 [N], natural order
    scheduler: Any
    steps: list[StepRecord] = field(default_factory=list)


class Engine:
    """Holds the weights; every `generate` starts from nothing else.

    Args:
        config: from `load_config`.
        model: an already loaded model to share between engines; None loads `config.model`.
        mesh: the ranks that work together; None is this process alone.
        policies: makes a policy for each generation; called like `make_policy`.

    Raises:
        UserError: a config that does not fit the model, the video or this machine.
    """

    def __init__(
        self,
        config: Config,
        *,
        model: VideoModel | None = None,
        mesh: Mesh | None = None,
        policies: Callable[..., Policy] = make_policy,
    ) -> None:
        self.config, self.mesh, self._make_policy = config, mesh or Mesh.single(), policies
        geometry = model.geometry if model else read_geometry(config.model.name)
        video = config.video
        self.latent_shape: Shape3 = geometry.latent_shape(video.frames, video.height, video.width)
        self._policy(geometry)  # says what does not fit before minutes of loading
        started = time.perf_counter()
        self.model: VideoModel = model or load_model(
            config.model.name,
            dtype=config.model.dtype,
            vae_dtype=config.model.vae_dtype,
            max_sequence_length=config.model.max_sequence_length,
            device=pick_device(config.runtime),
        )
        self._load_seconds = time.perf_counter() - started

    def generate(
        self,
        prompt: str,
        *,
        seed: int | None = None,
        negative_prompt: str | None = None,
        observer: Observer | None = None,
    ) -> Generation:
        """Make one video.

        Args:
            prompt: what it shows.
            seed: of the noise; None takes the config's. The same seed gives diffusers' `WanPipeline` noise.
            negative_prompt: text of the uncond branch; None takes the config's.
            observer: hears about phases and steps.

        Raises:
            UserError: an empty prompt.
            RunError: the latents became non-finite; names the step.
        """
        if not prompt.strip():
            raise UserError("the prompt is empty: say what the video shows")
        observer = observer or NullObserver()
        asked = {"seed": seed, "negative_prompt": negative_prompt}
        changes = {key: value for key, value in asked.items() if value is not None}
        sampling = self.config.sampling.model_copy(update=changes)
        prompts = [prompt, sampling.negative_prompt] if guidance_on(sampling.guidance) else [prompt]
        for note in self.model.notes(prompt):
            observer.note(note)
        seconds = {"load": self._load_seconds}
        observe.reset_peak(self.model.device)

        with torch.inference_mode():
            with self._phase("encode", seconds, observer):
                state = self._begin(prompts, sampling.seed)
            with self._phase("denoise", seconds, observer):
                self._denoise(state, observer)
            with self._phase("decode", seconds, observer):
                frames = self.model.decode(state.latent)

        # The clone is an ordinary tensor; the one from inference mode could not be used in autograd.
        levels = state.levels.reshape(self._token_shape()).cpu().numpy()
        config = self.config.model_copy(update={"sampling": sampling})
        record = {"prompt": prompt, "config": config.model_dump(mode="json"), **self._record(state, seconds)}
        return Generation(frames, state.latent.clone(), record, levels)

    def _begin(self, prompts: list[str], seed: int) -> State:
        model, sampling = self.model, self.config.sampling
        plan = TokenPlan.natural(int(np.prod(self._token_shape())), model.device)
        branches = model.encode(prompts)
        return State(
            latent=model.noise(self.latent_shape, seed),
            branches=branches,
            caches=[NoCache(model.geometry.layers) for _ in branches],
            plan=plan,
            velocity=VelocityRows(plan.tokens, model.geometry.row_width, model.dtype, model.device),
            levels=torch.full((plan.tokens,), ACTIVE, dtype=torch.uint8, device=model.device),
            scheduler=model.scheduler(sampling.steps, sampling.shift),
        )

    def _denoise(self, state: State, observer: Observer) -> None:
        """The loop: decide, compute those rows, step, observe. Writes to `state`."""
        policy = self._policy(self.model.geometry)
        timesteps = state.scheduler.timesteps
        for index, timestep in enumerate(timesteps):
            started = time.perf_counter()
            kind = policy.decide(index)
            rows = state.plan.rows(kind)
            velocity = self._velocity(state, index, timestep, kind, rows)
            stepped = state.scheduler.step(velocity, timestep, state.latent[None], return_dict=False)[0]
            state.latent = stepped[0]
            if not bool(state.latent.isfinite().all()):
                raise RunError(
                    f"the latents became non-finite in step {index} ({kind}): "
                    "use model.dtype float32 or bfloat16, lower guidance, or check the weights"
                )
            levels = policy.observe(index, velocity[0])
            if levels is not None:
                self._replan(state, self.mesh.broadcast(levels))
            observe.synchronize(self.model.device)
            seconds = time.perf_counter() - started
            state.steps.append(StepRecord(index, kind.value, rows.numel(), seconds, self.mesh.take_bytes()))
            observer.step(state.steps[-1], len(timesteps))

    def _velocity(self, state: State, index: int, timestep: Tensor, kind: StepKind, rows: Tensor) -> Tensor:
        """The guided velocity [1, C, T, H, W]: fresh in `rows`, elsewhere the last one computed."""
        idle = NoCache(self.model.geometry.layers)
        outputs = [
            self.model.forward(state.latent, timestep, branch, rows, idle if kind is StepKind.FULL else cache)
            for branch, cache in zip(state.branches, state.caches, strict=True)
        ]
        guided = guide(outputs, self.config.sampling.guidance)
        state.velocity.update(rows, guided, float(state.scheduler.sigmas[index]))
        return self.model.unpatchify(state.velocity.rows, self.latent_shape)[None]

    def _replan(self, state: State, levels: Tensor) -> None:
        """A new map: order the tokens by it and start empty caches in that order."""
        geometry, model = self.model.geometry, self.model
        state.levels, state.plan = levels, TokenPlan.from_levels(levels)
        sizes = (geometry.layers, state.plan.tokens, geometry.heads, geometry.head_dim)
        state.caches = [KVCache(*sizes, model.dtype, model.device) for _ in state.branches]

    def _policy(self, geometry: Geometry) -> Policy:
        try:
            return self._make_policy(
                self.config.policy.model_dump(),
                steps=self.config.sampling.steps,
                latent=self.latent_shape,
                patch=geometry.patch,
            )
        except ValueError as error:
            raise UserError(str(error)) from error

    def _token_shape(self) -> Shape3:
        t, h, w = (
            size // edge for size, edge in zip(self.latent_shape, self.model.geometry.patch, strict=True)
        )
        return t, h, w

    @contextmanager
    def _phase(self, name: str, seconds: dict[str, float], observer: Observer) -> Iterator[None]:
        observer.phase(name)
        started = time.perf_counter()
        yield
        observe.synchronize(self.model.device)
        seconds[name] = time.perf_counter() - started

    def _record(self, state: State, seconds: dict[str, float]) -> dict[str, Any]:
        geometry, tokens = self.model.geometry, state.plan.tokens
        branches, text_tokens = len(state.branches), self.config.model.max_sequence_length
        text = geometry.text_flops(text_tokens)
        done = text + sum(geometry.forward_flops(step.tokens, tokens, text_tokens) for step in state.steps)
        full = text + len(state.steps) * geometry.forward_flops(tokens, tokens, text_tokens)
        return {
            "versions": observe.versions(),
            "mesh": self.mesh.record(),
            "policy": self.config.policy.name,
            "levels": state.plan.shares(),
            "steps": [asdict(step) for step in state.steps],
            "seconds": {**seconds, "total": sum(seconds.values())},
            "memory": {
                "cache_bytes_per_rank": sum(cache.nbytes for cache in state.caches),
                "peak_bytes_per_rank": observe.peak_bytes(self.model.device),
            },
            "flops": {"full": branches * full, "done": branches * done},
        }
