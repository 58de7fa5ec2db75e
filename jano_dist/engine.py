"""The engine: built once from a config, then from prompt to video as often as one likes.

`Engine.generate` is the walk of docs/architecture.md: encode, noise, denoise, decode.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jano_dist import observe
from jano_dist.account import branch_flops, check_fit
from jano_dist.alike import check_alike
from jano_dist.attention import kernel_for
from jano_dist.config import Config, change_sampling, check_prompt, notes_on_skipping, of_second_expert
from jano_dist.degrees import check_policy, check_whole_steps, choose_degrees, explain_degrees
from jano_dist.denoise import Denoiser, State
from jano_dist.errors import UserError
from jano_dist.mesh import Mesh, ranks_started
from jano_dist.models import (
    Conditions,
    DiffusionModel,
    Geometry,
    cut_texts,
    image_digest,
    load_model,
    model_digest,
    read_geometry,
)
from jano_dist.observe import NullObserver, Observer
from jano_dist.policies import Policy, make_policy
from jano_dist.runtime import pick_device, ranks_per_node, release, require_gang, since_launch
from jano_dist.snapshot import NoSnapshots, Snapshot, Snapshots
from jano_dist.telemetry import Sampler, gather_usage, gpu_uuid, open_sampler, refuse_shared_gpus
from jano_dist.texts import Texts
from jano_dist.tokens.grid import Shape3
from jano_dist.tokens.schedule import StepKind

_NO_SNAPSHOTS = NoSnapshots()


@dataclass(frozen=True)
class Generation:
    """One finished video.

    Attributes:
        frames: uint8 [T, H, W, 3] on the coordinator; [0, H, W, 3] on other ranks.
        latents: float32 [C, T', H', W'], the denoised latent.
        record: what `run.json` holds.
        levels: uint8 [tokens along T, H, W], the complexity map (all active where none was made).
    """

    frames: np.ndarray
    latents: Tensor
    record: dict[str, Any]
    levels: np.ndarray


class _Warner(NullObserver):
    """Where nobody listens, what the user should know becomes a Python warning."""

    def note(self, sentence: str) -> None:
        warnings.warn(sentence, stacklevel=3)


def _check_observer(observer: object) -> None:
    lacking = [name for name in ("phase", "step", "note") if not callable(getattr(observer, name, None))]
    if observer is not None and lacking:
        raise UserError(
            f"the observer {observer!r} has no method {', '.join(lacking)}: give one like "
            "jano_dist.observe.NullObserver, or None"
        )


def _mesh_wishes(config: Config, geometry: Geometry) -> tuple[object, ...]:
    """What of a config decides on the mesh."""
    return config.mesh, geometry.branches(config.sampling.guidance), config.cache.kind


def _check_engine(config: object, mesh: object) -> None:
    if not isinstance(config, Config):
        raise UserError(f"an engine is made from a Config, not from {config!r}: call load_config first")
    if not isinstance(mesh, Mesh | None):
        raise UserError(f"the mesh should be a Mesh, not {mesh!r}: give one, or None for all ranks")


class Engine:
    """Holds the weights; every `generate` starts from nothing else.

    Args:
        config: from `load_config`.
        model: an already loaded model to share between engines; None loads `config.model`.
        mesh: the ranks that work together; None arranges all ranks of the process group (this process
            alone where there is none) by `config.mesh`.
        policies: makes a policy for each generation; called like `make_policy`.
        observer: hears that weights are being read, after all checks.
        sampler: reads the GPU while a video is made; None asks NVML, where there is one.

    Raises:
        UserError: a config that does not fit the model, the video, the ranks or this machine's memory;
            ranks that were started with different configs, software or model files or on the same GPU, or
            that have not joined.
    """

    def __init__(
        self,
        config: Config,
        *,
        model: DiffusionModel | None = None,
        mesh: Mesh | None = None,
        policies: Callable[..., Policy] = make_policy,
        observer: Observer | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        _check_engine(config, mesh)
        _check_observer(observer)
        self.config, self._make_policy = config, policies
        self.mesh_choice = ""  # one line on why this mesh, where the engine chose it
        geometry = model.geometry if model else read_geometry(config.model.name)
        if mesh is None:
            require_gang()
        video = config.video
        self.latent_shape: Shape3 = geometry.latent_shape(video.frames, video.height, video.width)
        geometry.check_image(config.sampling.image)
        geometry.check_experts(of_second_expert(config))
        self._policy(geometry)  # says what does not fit before minutes of loading
        device = model.device if model else pick_device(config.runtime)
        # Before the mesh and by way of the host: ranks of different configs might wait for each other in
        # forming it, and NCCL cannot connect a GPU with itself.
        everyone = mesh or Mesh(ulysses=ranks_started(), timeout_seconds=config.runtime.timeout_seconds)
        self._files = (
            b"" if model else model_digest(config.model.name, (*config.model.loras, *config.model.loras_2))
        )
        check_alike(everyone, self._same(geometry, device), image_digest(config.sampling.image))
        refuse_shared_gpus(everyone, gpu_uuid(device))
        self._sampler = sampler or open_sampler(gpu_uuid(device))
        self.mesh = mesh or self._arrange(geometry, device)
        if not geometry.regions:
            check_whole_steps(config, self.mesh.degrees)
        check_policy(config.policy.name, self.mesh.degrees, block_caches=geometry.block_caches)
        kernel_for(config, geometry, device, kv=self.mesh.degrees.kv)
        held = config.model.model_dump(exclude={"name", "lora", "lora_2"})
        if model is None:
            held["text_encoder"] = check_fit(
                config, self.mesh.degrees, device, local_world=ranks_per_node(), formed=True
            )
        started = time.perf_counter()
        self.model: DiffusionModel = model or load_model(
            config.model.name,
            **held,
            loras=config.model.loras,
            loras_2=config.model.loras_2,
            device=device,
            mesh=self.mesh,
            begin=lambda: (observer or NullObserver()).phase("load"),
        )
        self._load_seconds = time.perf_counter() - started
        self._is_fresh = model is None  # until the first video
        self.kernel = kernel_for(config, geometry, device, kv=self.mesh.degrees.kv, dtype=self.model.dtype)
        self._denoiser = Denoiser(config, self.model, self.mesh, self.latent_shape, self.kernel)
        self._texts = Texts(self.model.encode)

    def share(self, config: Config, *, policies: Callable[..., Policy] | None = None) -> "Engine":
        """An engine of another config on the same ranks, weights and prepared texts.

        On several ranks all call it together. The mesh is shared, too, where it would be chosen alike.

        Args:
            policies: makes its policies; None: as this engine's.

        Raises:
            UserError: a config of another model, or one that does not fit.
        """
        if config.model != self.config.model:
            raise UserError("engines share a model only where all of the config's section model is the same")
        geometry = self.model.geometry
        mesh = self.mesh if _mesh_wishes(config, geometry) == _mesh_wishes(self.config, geometry) else None
        sampler, maker = self._sampler, policies or self._make_policy
        other = Engine(config, model=self.model, mesh=mesh, policies=maker, sampler=sampler)
        other._files, other._texts = self._files, self._texts
        return other

    def prepare(self, texts: Sequence[str]) -> None:
        """Encode prompts and negative prompts to come at once.

        The coordinator's texts count, and it keeps them in host memory: 4 MB each for 14B. On several ranks
        all call it together.
        """
        if self.mesh.is_coordinator:
            with torch.inference_mode():
                self._texts.prepare(texts)
        self.mesh.await_everyone()

    def _arrange(self, geometry: Geometry, device: torch.device) -> Mesh:
        asked, local_world = self.config.mesh, ranks_per_node()
        heads, guided = geometry.heads, geometry.branches(self.config.sampling.guidance) == 2
        facts: dict[str, Any] = {"heads": heads, "guided": guided, "local_world": local_world}
        facts["hidden"] = self.config.cache.kind == "hidden"
        degrees = choose_degrees(asked, world=ranks_started(), **facts)
        self.mesh_choice = explain_degrees(degrees, asked, **facts)
        timeout = self.config.runtime.timeout_seconds
        return Mesh(**degrees._asdict(), local_world=local_world, device=device, timeout_seconds=timeout)

    def _same(self, geometry: Geometry, device: torch.device) -> dict[str, bytes]:
        """What must be so on every rank, see `check_alike`."""
        return {
            "another config": self.config.model_dump_json().encode(),
            "other software versions": repr(observe.versions()).encode(),
            "other model files": self._files,
            "another attention kernel": kernel_for(self.config, geometry, device).name.encode(),
        }

    def generate(
        self,
        prompt: str,
        *,
        seed: int | None = None,
        negative_prompt: str | None = None,
        observer: Observer | None = None,
        snapshots: Snapshots = _NO_SNAPSHOTS,
    ) -> Generation:
        """Make one video. On several ranks all call it together, and the coordinator's arguments count.

        Args:
            prompt: what it shows.
            seed: of the noise; None takes the config's. The same seed gives diffusers' `WanPipeline` noise.
            negative_prompt: text of the uncond branch; None takes the config's.
            observer: hears about phases and steps; without one, what the user should know is a warning.
            snapshots: where the coordinator finds one to go on from, and keeps others.

        Raises:
            UserError: an empty prompt, an argument of the wrong type or out of its range, or a snapshot of
                another run.
            RunError: the latents became non-finite; names the step.
        """
        check_prompt(prompt)
        sampling = change_sampling(self.config.sampling, {"seed": seed, "negative_prompt": negative_prompt})
        _check_observer(observer)
        observer = observer or (_Warner() if self.mesh.is_coordinator else NullObserver())
        prompts = [prompt, sampling.negative_prompt][: self.model.geometry.branches(sampling.guidance)]
        for note in (*self.model.notes(*prompts), *notes_on_skipping(self.config), *self.kernel.notes):
            observer.note(note)
        made = datetime.now(UTC).isoformat(timespec="seconds")
        seconds, self._load_seconds = {"load": self._load_seconds}, 0.0  # of the first video
        observe.reset_peak(self.model.device)
        config = self.config.model_copy(update={"sampling": sampling})
        facts = self._facts(prompt, config)
        policy = self._policy(self.model.geometry, **self._switch())
        with torch.inference_mode(), self._sampler.measure() as usage:
            with self._phase("encode", seconds, observer):
                state = self._begin(prompts, sampling.seed, policy, snapshots, facts)
            resumed = state.next_step
            with self._phase("denoise", seconds, observer):
                self._denoiser.run(state, policy, observer, snapshots, facts)
            memory = self._memory(state)
            state.caches = []
            release(self.model.device)  # decoding needs the room
            with self._phase("decode", seconds, observer):
                frames = self.model.decode(state.latent, self.mesh)
                self.mesh.await_everyone()  # the coordinator may have decoded alone

        levels = state.levels.reshape(self._denoiser.token_shape)
        record = {
            "prompt": prompt,
            "config": facts["config"],
            "made": made,
            "resumed_from_step": resumed,
            **self._record(state, seconds, memory, len(prompts)),
            "telemetry": gather_usage(self.mesh, usage()),
        }
        # The clone is an ordinary tensor; the one of inference mode could not be used in autograd.
        return Generation(frames, state.latent.clone(), record, levels.cpu().numpy())

    def _start_seconds(self, state: State) -> float | None:
        """From this rank's launch to its first step; None where it had made a video before, or no step."""
        fresh, self._is_fresh = self._is_fresh, False
        return since_launch(state.steps[0].began) if fresh and state.steps else None

    def _facts(self, prompt: str, config: Config) -> dict[str, Any]:
        """What tells this run from others, for its snapshots."""
        image = image_digest(config.sampling.image).hex()
        files = {"files": self._files.hex(), "image": image}
        return {"prompt": prompt, **files, "config": config.model_dump(mode="json")}

    def _begin(
        self, prompts: list[str], seed: int, policy: Policy, snapshots: Snapshots, facts: Mapping[str, Any]
    ) -> State:
        """The state before the first step, or that of a snapshot, which spares the text encoder."""
        found = self._found(snapshots, facts)
        if found:
            return self._denoiser.resume(found, policy)
        return self._denoiser.begin(self._encode(prompts), seed, forecasts=policy.forecasts)

    def _encode(self, prompts: list[str]) -> Conditions:
        """What the prompts and the picture became, on every rank; the coordinator makes it."""
        own, image = None, self.config.sampling.image
        if self.mesh.is_coordinator:
            own = cut_texts(self._texts.embed(*prompts))
            own |= self.model.look(image, self.latent_shape) if image else {}
        self.mesh.await_everyone()  # nodes may read their weights at different speeds, too
        return self.mesh.broadcast_named(own)

    def _found(self, snapshots: Snapshots, facts: Mapping[str, Any]) -> Snapshot | None:
        """The snapshot to go on from, which the coordinator reads, on every rank."""
        mesh = self.mesh
        packed = snapshots.newest(facts) if mesh.is_coordinator else None
        (size,) = mesh.decide(len(packed or b""))
        if size == 0:
            return None
        content = torch.frombuffer(bytearray(packed or bytes(size)), dtype=torch.uint8)
        return Snapshot.unpack(mesh.broadcast(content).numpy().tobytes())

    def _switch(self) -> dict[str, int]:
        """The first step of a second expert, as `make_policy` takes it."""
        sampling, geometry = self.config.sampling, self.model.geometry
        timesteps = self.model.scheduler(sampling.steps, sampling.shift, self.latent_shape).timesteps
        seconds = [step for step, each in enumerate(timesteps.tolist()) if geometry.expert(each)]
        return {"switch": seconds[0]} if seconds else {}

    def _policy(self, geometry: Geometry, **switch: int) -> Policy:
        try:
            return self._make_policy(
                self.config.policy.model_dump(),
                steps=self.config.sampling.steps,
                latent=self.latent_shape,
                patch=geometry.patch,
                **switch,
            )
        except ValueError as error:
            raise UserError(str(error)) from error

    @contextmanager
    def _phase(self, name: str, seconds: dict[str, float], observer: Observer) -> Iterator[None]:
        observer.phase(name)
        started = time.perf_counter()
        yield
        observe.synchronize(self.model.device)
        seconds[name] = time.perf_counter() - started

    def _memory(self, state: State) -> dict[str, int]:
        """Bytes of caches, and of the buffers they share, on the rank that has most of them."""
        own = torch.tensor([sum(cache.nbytes for cache in state.caches), state.workspace_bytes])
        caches, workspace = self.mesh.collect(own).amax(0).tolist()
        return {"cache_bytes_per_rank": caches, "workspace_bytes_per_rank": workspace}

    def _record(
        self, state: State, seconds: dict[str, float], memory: dict[str, int], branches: int
    ) -> dict[str, Any]:
        geometry, tokens = self.model.geometry, state.plan.tokens
        text = geometry.text_flops(geometry.text_tokens(self.config.model.max_sequence_length))
        text *= geometry.experts
        steps = self._denoiser.step_rows(state)
        taken = [step for step in steps if step["kind"] != StepKind.SKIP]
        done = text + sum(
            branch_flops(geometry, self.config, step["tokens"], tokens, step.get("blocks")) for step in taken
        )
        full = text + len(steps) * branch_flops(geometry, self.config, tokens, tokens)
        peak = torch.tensor(observe.peak_bytes(self.model.device))
        return {
            "start_to_first_step_seconds": self._start_seconds(state),
            "device": observe.device_name(self.model.device),
            "versions": observe.versions(),
            "mesh": self.mesh.record(),
            "attention": self.kernel.name,
            "policy": self.config.policy.name,
            "levels": state.plan.shares(),
            "steps": steps,
            "seconds": {**seconds, "total": sum(seconds.values())},
            "memory": {**memory, "peak_bytes_per_rank": int(self.mesh.collect(peak).max())},
            "flops": {"full": branches * full, "done": branches * done},
        }
