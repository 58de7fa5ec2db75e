"""Full runs, and other runs compared with them: one model, texts encoded once, on one rank or on many."""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jano_dist.bench.cases import Case, full_config
from jano_dist.bench.outcome import Outcome as Outcome
from jano_dist.bench.stand_ins import random_maps, recording
from jano_dist.config import Config
from jano_dist.engine import Engine, Generation
from jano_dist.observe import NullObserver, Observer, versions
from jano_dist.policies import Policy
from jano_dist.quality import Frames, psnr

Judge = Callable[[Frames, Frames], Mapping[str, float | None]]  # the full run's frames, a case's
_WORK = ("encode", "denoise", "decode")  # what a video costs once the model is loaded
_WARM_STEPS = 2


@dataclass(frozen=True)
class Full:
    """A full run, with which cases are compared.

    Attributes:
        frames: uint8 [T, H, W, 3] on the coordinator; none [0, H, W, 3] on other ranks.
        seconds: `denoise`, and `whole` (encode, denoise and decode).
        flops: counted, of all branches and steps.
        session: of the `Runs` that made it.
        velocities: float32 [steps, C, T, H, W], guided, in host memory; None where they were not asked for,
            and on other ranks than the coordinator.
    """

    frames: Frames
    seconds: dict[str, float]
    flops: int
    session: str
    velocities: Tensor | None = None


def only_psnr(full: Frames, case: Frames) -> dict[str, float | None]:
    """The judge that costs least."""
    return {"psnr": psnr(full, case)}


class Runs:
    """Full runs and cases of one config. On several ranks all call everything together, in the same order;
    the coordinator's arguments count, and it alone gets frames and figures.

    Args:
        config: what cases change; its policy may be any.
        folder: keeps full runs, so that a process that comes later finds them; None: memory does.
        velocities: whether full runs keep their guided velocities (a latent's size for each step).
        judge: (full frames, case's frames) -> `Outcome.quality`.
        observer: hears that weights are being read, and of every phase and step.
        mesh, model: see `Engine`.

    Raises:
        UserError: see `Engine`.
    """

    def __init__(
        self,
        config: Config,
        *,
        folder: Path | None = None,
        velocities: bool = False,
        judge: Judge = only_psnr,
        observer: Observer | None = None,
        **shared: Any,
    ) -> None:
        self.config, self._folder, self._judge = config, folder, judge
        self._observer = observer or NullObserver()
        self._kept: list[Tensor] | None = [] if velocities else None
        self.base = Engine(full_config(config), observer=observer, **shared)
        self._models = {config.model: self.base}  # engines that have loaded a model
        self._engines: dict[tuple[str, str | None], Engine] = {}
        self._fulls: dict[tuple[str, int], Full] = {}
        self._texts: list[str] = []
        self.session = f"{time.time_ns():x}"

    @property
    def is_coordinator(self) -> bool:
        return self.base.mesh.is_coordinator

    def decide(self, *values: int) -> tuple[int, ...]:
        """The coordinator's whole numbers, on every rank."""
        return self.base.mesh.decide(*values)

    def prepare(self, prompts: Sequence[str]) -> None:
        """Encode all prompts to come, in one load of the text encoder."""
        sampling, geometry = self.config.sampling, self.base.model.geometry
        negative = [sampling.negative_prompt] if geometry.branches(sampling.guidance) == 2 else []
        self._texts = [*prompts, *negative]
        for engine in self._models.values():
            engine.prepare(self._texts)

    def warm_up(self, prompt: str) -> None:
        """Make and throw away a video of two steps: what is done for the first time takes longer."""
        steps = min(_WARM_STEPS, self.config.sampling.steps)
        self._engine(Case("warm-up", {"policy.name": "full", "sampling.steps": steps})).generate(
            prompt, observer=self._observer
        )

    def full(self, prompt: str, seed: int) -> Full:
        """The full run: kept, found in the folder, or made now."""
        known = (prompt, seed)
        if self.decide(int(known in self._fulls))[0]:
            return self._fulls[known]
        path = self._path(prompt, seed)
        found = self.decide(int(bool(path and self.is_coordinator and path.exists())))[0]
        full = self._read(path) if found else self._make_full(prompt, seed)
        if not found and path and self.is_coordinator:
            _write(path, full)
        if path:
            self._fulls.clear()  # those in the folder need no memory
        self._fulls[known] = full
        return full

    def forget(self, prompt: str, seed: int) -> None:
        """Drop a full run that is not needed any more, from the folder, too."""
        self._fulls.pop((prompt, seed), None)
        path = self._path(prompt, seed)
        if path and self.is_coordinator:
            path.unlink(missing_ok=True)

    def generate(self, case: Case, prompt: str, seed: int) -> Generation:
        """Make the video of a case."""
        return self._engine(case).generate(prompt, seed=seed, observer=self._observer)

    def compare(self, case: Case, made: Generation, full: Full) -> Outcome:
        """What a case's video is worth; only on the coordinator, which has the frames."""
        record = made.record
        largest = math.prod(made.levels.shape)
        return Outcome(
            case=case.name,
            prompt=record["prompt"],
            seed=record["config"]["sampling"]["seed"],
            config=record["config"],
            seconds=_seconds(record),
            full_seconds=full.seconds if full.session == self.session else None,
            work=record["flops"]["done"] / full.flops,
            kinds=[step["kind"] for step in record["steps"]],
            tokens=[round(step["tokens"] / largest, 4) for step in record["steps"]],
            levels=record["levels"],
            quality=dict(self._judge(full.frames, made.frames)),
        )

    def measure(self, case: Case, prompt: str, seed: int) -> Outcome | None:
        """Make a case's video, after the full one where that is not there yet, and compare them.

        Returns:
            None on other ranks than the coordinator.
        """
        full = self.full(prompt, seed)
        made = self.generate(case, prompt, seed)
        return self.compare(case, made, full) if self.is_coordinator else None

    def _make_full(self, prompt: str, seed: int) -> Full:
        maker = None if self._kept is None else recording(self._kept)
        made = self._engine(Case("full", {"policy.name": "full"}), maker).generate(
            prompt, seed=seed, observer=self._observer
        )
        kept = torch.stack(self._kept) if self._kept else None
        flops = int(made.record["flops"]["done"])
        return Full(made.frames, _seconds(made.record), flops, self.session, kept)

    def _engine(self, case: Case, policies: Callable[..., Policy] | None = None) -> Engine:
        config = case.config(self.config)
        kind = case.rearrange or (None if policies is None else "recorded")
        known = (config.model_dump_json(), kind)
        if known not in self._engines:
            loaded = self._loaded(config)
            maker = random_maps if case.rearrange else policies
            self._engines[known] = loaded.share(config, policies=maker)
        return self._engines[known]

    def _loaded(self, config: Config) -> Engine:
        """An engine that has this config's model; another one is loaded where the case has changed it."""
        if config.model not in self._models:
            full = full_config(config).model_copy(update={"mesh": self.config.mesh})
            self._models[config.model] = Engine(full, mesh=self.base.mesh, observer=self._observer)
            self._models[config.model].prepare(self._texts)
        return self._models[config.model]

    def _path(self, prompt: str, seed: int) -> Path | None:
        if self._folder is None:
            return None
        facts = [self.base.config.model_dump_json(), prompt, seed, self.base.mesh.record(), versions()]
        digest = hashlib.sha256(json.dumps([*facts, self._kept is not None]).encode()).hexdigest()
        return self._folder / f"{digest[:24]}.npz"

    def _read(self, path: Path | None) -> Full:
        if path is None or not self.is_coordinator:
            return Full(np.zeros((0, 1, 1, 3), np.uint8), {}, 1, "")
        with np.load(path) as file:
            facts = json.loads(str(file["facts"]))
            kept = torch.from_numpy(file["velocities"]) if "velocities" in file else None
            return Full(file["frames"], **facts, velocities=kept)


def _write(path: Path, full: Full) -> None:
    """The file is whole, or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"frames": full.frames}
    if full.velocities is not None:
        arrays["velocities"] = full.velocities.numpy()
    plain = replace(full, frames=None, velocities=None)  # type: ignore[arg-type]
    facts = {name: value for name, value in vars(plain).items() if value is not None}
    half = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        with half.open("wb") as file:
            np.savez(file, facts=np.array(json.dumps(facts)), **arrays)
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def _seconds(record: Mapping[str, Any]) -> dict[str, float]:
    seconds = record["seconds"]
    return {"denoise": seconds["denoise"], "whole": sum(seconds[name] for name in _WORK)}
