"""A batch in a rank: load once, encode all texts, then make one job after the other."""

import itertools
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

from jano_dist.batch import NOTHING_LEFT, NOTHING_NOW, BatchFolder, Job, Plan, Work, ask, note
from jano_dist.cli import importing
from jano_dist.gang import Place, Progress, recoveries
from jano_dist.libraries import quiet_libraries
from jano_dist.snapshot import SnapshotFolder, clear
from jano_dist.target import reserve, unfinished

if TYPE_CHECKING:
    from torch.distributed import Store

    from jano_dist.engine import Engine
    from jano_dist.geometry import Geometry

_IDLE = 1.0  # seconds from one question to the next, when there is nothing to do
_PATIENCE = 20.0  # seconds for the ranks of a driver that was killed to be gone


def make_jobs(folder: BatchFolder, place: Place, *, save_latents: bool) -> None:
    """This rank's part of a batch, until the driver says that nothing is left."""
    quiet_libraries()
    with importing():
        from jano_dist.engine import Engine
        from jano_dist.runtime import join

    plan = folder.read()
    with join(plan.configs[0].runtime) as store:
        listener = _listener(store, place)
        base = Engine(plan.configs[0], observer=listener)
        listener.phase("encode")
        base.prepare(_texts(folder, plan, base.model.geometry) if place.is_coordinator else [])
        engines = {0: base}
        for turn in itertools.count():
            index = _next(base, store, turn)
            if index == NOTHING_LEFT:
                break
            if index == NOTHING_NOW:
                time.sleep(_IDLE)
                continue
            job = plan.jobs[index]
            if job.config not in engines:
                engines[job.config] = base.share(plan.configs[job.config])
            _make(engines[job.config], job, folder, store, place, save_latents)


def _next(engine: "Engine", store: "Store", turn: int) -> int:
    """The driver's answer, on every rank."""
    index = ask(store, turn) if engine.mesh.is_coordinator else 0
    engine.mesh.await_everyone()  # the driver may be busy with another gang
    return engine.mesh.decide(index)[0]


def _texts(folder: BatchFolder, plan: Plan, geometry: "Geometry") -> list[str]:
    """All texts of the jobs that are left."""
    texts = []
    for job in Work(folder, plan).left:
        branches = geometry.branches(plan.configs[job.config].sampling.guidance)
        texts += [job.prompt, job.negative_prompt][:branches]
    return texts


def _make(
    engine: "Engine", job: Job, folder: BatchFolder, store: "Store", place: Place, save_latents: bool
) -> None:
    """One video, from its last snapshot if there is one; the driver hears of it when more is asked for."""
    from jano_dist.run_folder import write_run

    out, listener = folder.run(job), _listener(store, place)
    listener.phase("encode")
    holding = reserve(out, patience=_PATIENCE) if place.is_coordinator else nullcontext()
    with holding:
        snapshots = SnapshotFolder(
            unfinished(out), engine.config.snapshot.seconds, required=False, note=listener.note
        )
        generation = engine.generate(
            job.prompt,
            seed=job.seed,
            negative_prompt=job.negative_prompt,
            observer=listener,
            snapshots=snapshots,
        )
        generation.record["recoveries"] = recoveries(store)
        if place.is_coordinator:
            listener.phase("write")
            write_run(out, generation, fps=engine.config.video.fps, save_latents=save_latents)
            clear(unfinished(out))


def _listener(store: "Store", place: Place) -> Progress:
    """Tells the store how far this rank is, and, as the coordinator, the driver what the user should know."""
    from jano_dist.observe import NullObserver

    class Notes(NullObserver):
        def note(self, sentence: str) -> None:
            note(store, sentence)

    return Progress(Notes() if place.is_coordinator else NullObserver(), store, place)
