"""The videos of a tuning, made by real engines."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from jano_dist import observe
from jano_dist.bench.cases import Case
from jano_dist.bench.quality import Listener
from jano_dist.bench.ran import ran
from jano_dist.bench.replay import predict
from jano_dist.bench.runs import Outcome, Runs
from jano_dist.bench.search import Candidate
from jano_dist.bench.space import Prediction
from jano_dist.bench.tune_page import Kept, make_page
from jano_dist.config import Config
from jano_dist.errors import NotFinite, UserError
from jano_dist.observe import Observer
from jano_dist.quality import measures

_FAILED = 0.0  # dB of a run whose latents did not stay finite


class TuneRuns:
    """`tuning.Runner`: full runs are kept in a folder, those of the first rung with their velocities.

    Args:
        config: that is tuned. prompts: each with its seed.
        first: numbers of the prompts whose full runs foretell.
        folder: for full runs; a later process finds them there.
        observer: hears of every phase and step.
        shared: see `Engine`.

    Raises:
        UserError: see `Engine`.
    """

    def __init__(
        self,
        config: Config,
        prompts: Sequence[tuple[str, int]],
        first: Sequence[int],
        folder: Path,
        *,
        observer: Observer | None = None,
        **shared: Any,
    ) -> None:
        self._config, self._prompts, self._first = config, list(prompts), list(first)
        self._folder, self._observer = folder, observer
        self._watched = Runs(config, folder=folder, velocities=True, observer=observer, **shared)
        base = self._watched.base
        self._plain = Runs(config, folder=folder, observer=observer, model=base.model, mesh=base.mesh)
        self.mesh, self.mesh_choice = base.mesh, base.mesh_choice
        for runs in (self._watched, self._plain):
            texts = [text for number, (text, _) in enumerate(self._prompts) if self._runs(number) is runs]
            runs.prepare(texts)

    def warm_up(self) -> None:
        """What is done for the first time takes longer: do it where no clock runs."""
        self._watched.warm_up(self._prompts[0][0])

    def where(self) -> dict[str, Any]:
        """What a figure depends on besides the config."""
        device = observe.device_name(self._watched.base.model.device)
        return {"device": device, "mesh": self.mesh.record(), "versions": observe.versions()}

    def agree(self, *numbers: int) -> tuple[int, ...]:
        self.mesh.await_everyone()
        return self.mesh.decide(*numbers)

    def full(self, prompt: int) -> dict[str, Any]:
        full = self._runs(prompt).full(*self._prompts[prompt])
        return {"seconds": full.seconds}

    def measure(self, candidate: Candidate, prompt: int) -> dict[str, Any]:
        case = Case(candidate.name, candidate.changes)
        try:
            outcome = self._runs(prompt).measure(case, *self._prompts[prompt])
        except NotFinite as error:  # on every rank, since each has the whole latent
            return self._failed(prompt, str(error))
        return {} if outcome is None else _row(outcome)

    def predict(
        self, candidates: Sequence[Candidate], prompts: Sequence[int]
    ) -> tuple[dict[str, Prediction], dict[str, str]]:
        fulls = [self._runs(prompt).full(*self._prompts[prompt]) for prompt in prompts]
        predictions: dict[str, Prediction] = {}
        misfits: dict[str, str] = {}
        velocities = [full.velocities for full in fulls if full.velocities is not None]
        if not velocities:  # not the coordinator
            return predictions, misfits
        base, sampling = self._watched.base, self._config.sampling
        sigmas = base.model.scheduler(sampling.steps, sampling.shift, base.latent_shape).sigmas.cpu()
        for candidate in candidates:
            config = Case(candidate.name, candidate.changes).config(self._config)
            try:
                with torch.inference_mode():
                    predictions[candidate.name] = predict(
                        config.policy.model_dump(),
                        steps=config.sampling.steps,
                        runs=velocities,
                        sigmas=sigmas,
                        patch=base.model.geometry.patch,
                    )
            except (ValueError, UserError) as error:
                misfits[candidate.name] = str(error)
        return predictions, misfits

    def show(
        self,
        candidates: Sequence[Candidate],
        prompts: Sequence[int],
        path: Path,
        arguments: Sequence[str],
        listener: Listener,
    ) -> None:
        """Make the page of some candidates on some prompts. On several ranks all call it together.

        Args:
            path: of its folder. arguments: of `jano-dist`, for the page.
        """
        base = self._watched.base
        runs = Kept(
            self._config,
            folder=self._folder,
            velocities=prompts[0] in self._first,
            judge=measures,
            observer=self._observer,
            model=base.model,
            mesh=base.mesh,
        )
        cases = [Case(each.name, each.changes) for each in candidates]
        facts = ran(arguments, base.model.device, self.mesh.world)
        make_page(runs, cases, [self._prompts[prompt] for prompt in prompts], path, facts, listener)

    def _runs(self, prompt: int) -> Runs:
        return self._watched if prompt in self._first else self._plain

    def _failed(self, prompt: int, sentence: str) -> dict[str, Any]:
        """A video that is nothing worth: as slow as the full one, and as bad as can be."""
        seconds = self._runs(prompt).full(*self._prompts[prompt]).seconds
        return {"seconds": seconds, "work": 1.0, "quality": {"psnr": _FAILED}, "failed": sentence}


def _row(outcome: Outcome) -> dict[str, Any]:
    """What is kept of an outcome; case, prompt, seed and config are known."""
    row: Mapping[str, Any] = outcome.to_json()
    return {name: row[name] for name in ("seconds", "work", "kinds", "tokens", "levels", "quality")}
