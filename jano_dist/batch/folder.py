"""The folder of a batch: what it is of, what is done, what failed. A file in it is whole, or not there."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jano_dist.batch.plan import Job, Plan
from jano_dist.config import change_config
from jano_dist.errors import UserError
from jano_dist.snapshot import clear
from jano_dist.target import is_run, result_of, settle, unfinished, write_whole

_FORMAT = 1
_PLAN, _FAILURES, _RESULTS = "batch.json", "failures.jsonl", "results.jsonl"
_HALF = ".unfinished"
# What makes a video; where it is made, and how often a snapshot is kept, may change.
_SAME = ("model", "video", "sampling", "policy", "cache")


class BatchFolder:
    """The folder that `--out` names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, plan: Plan) -> None:
        """Make it the folder of this batch. More jobs may come to those it has, no other ones in their place.

        Raises:
            UserError: it is another batch's, or none, or cannot be written.
        """
        try:
            self._check(plan)
            self.path.mkdir(parents=True, exist_ok=True)
            content = {
                "jano_dist_batch": _FORMAT,
                "configs": [config.model_dump(mode="json") for config in plan.configs],
                "jobs": [asdict(job) for job in plan.jobs],
            }
            self._write(_PLAN, json.dumps(content, indent=1) + "\n")
        except OSError as error:
            raise UserError(
                f"--out {self.path} cannot be used ({error.strerror or error}): give another folder"
            ) from error

    def read(self) -> Plan:
        """What `begin` was given.

        Raises:
            UserError: the folder is no batch's.
        """
        try:
            content = json.loads((self.path / _PLAN).read_text(encoding="utf-8"))
            if content["jano_dist_batch"] != _FORMAT:
                raise ValueError
            configs = tuple(change_config(raw, (), str(self.path / _PLAN)) for raw in content["configs"])
            return Plan(configs, tuple(Job(**job) for job in content["jobs"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"--out {self.path} is not the folder of a batch (no {_PLAN} of ours): give a new folder, or "
                "that of a batch to go on with"
            ) from error

    def run(self, job: Job) -> Path:
        """The run folder of a job."""
        return self.path / job.id

    def is_done(self, job: Job) -> bool:
        return is_run(self.run(job))

    def tidy(self, job: Job) -> None:
        """Remove what a job's attempts have left beside its run folder."""
        if unfinished(self.run(job)).exists():
            clear(unfinished(self.run(job)))
        settle(self.run(job))

    def note_failure(self, job: Job, row: Mapping[str, Any]) -> None:
        """Add an attempt that failed; it is on the disk when this returns.

        Args:
            row: of run.json's `recoveries`, and whether the job is set aside: `aside`.
        """
        with (self.path / _FAILURES).open("ab+") as file:
            if (
                file.tell()
            ):  # a line that was cut off when the machine went down must not take this one with it
                file.seek(-1, os.SEEK_END)
                file.write(b"" if file.read(1) == b"\n" else b"\n")
            file.write(json.dumps({"id": job.id, **row}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def failures(self) -> dict[str, list[dict[str, Any]]]:
        """The attempts that failed, by id of their job."""
        found: dict[str, list[dict[str, Any]]] = {}
        path = self.path / _FAILURES
        for line in path.read_bytes().split(b"\n") if path.exists() else ():
            try:
                row = json.loads(line)
                found.setdefault(row.pop("id"), []).append(row)
            except ValueError:  # the end of a line that was cut off, or of the file
                continue
        return found

    def write_results(self, jobs: Iterable[Job]) -> Path:
        """A line for each job, in this order: what became of it."""
        failures, path = self.failures(), self.path / _RESULTS
        rows = [self._result(job, failures.get(job.id, [])) for job in jobs]
        self._write(_RESULTS, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
        return path

    def seconds(self, job: Job) -> float:
        """How long a job that is done took, without what came before its last snapshot."""
        record = json.loads((self.run(job) / "run.json").read_text(encoding="utf-8"))
        return float(record["seconds"]["total"])

    def _result(self, job: Job, failures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        done = self.is_done(job)
        return {
            "id": job.id,
            "prompt": job.prompt,
            "seed": job.seed,
            "status": "done" if done else "set aside",
            "seconds": self.seconds(job) if done else None,
            "path": str(result_of(self.run(job))) if done else None,
            "error": None if done or not failures else failures[-1]["sentence"],
            "attempts": len(failures) + done,
        }

    def _check(self, plan: Plan) -> None:
        if self.path.is_dir() and all(path.name.endswith(_HALF) for path in self.path.iterdir()):
            return
        if os.path.lexists(self.path):
            old = self.read()
            for ours, theirs in _pairs(plan, old):
                for name, value in theirs.items():
                    if ours.get(name) != value:
                        raise UserError(_another(self.path, theirs["id"], name, value, ours.get(name)))

    def _write(self, name: str, text: str) -> None:
        write_whole(self.path / name, text)


def _pairs(plan: Plan, old: Plan) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """What makes each of the old plan's videos, now and then."""
    now = {job.id: job for job in plan.jobs}
    for job in old.jobs:
        yield (_essence(plan, now[job.id]) if job.id in now else {}), _essence(old, job)


def _essence(plan: Plan, job: Job) -> dict[str, Any]:
    """What makes a job's video, by the names that a user knows."""
    sections = plan.configs[job.config].model_dump(mode="json", include=set(_SAME))
    sections["sampling"] |= {"seed": job.seed, "negative_prompt": job.negative_prompt}
    keys = {f"{section}.{key}": value for section in _SAME for key, value in sections[section].items()}
    return {"id": job.id, "prompt": job.prompt, **keys}


def _another(path: Path, name: str, key: str, old: object, new: object) -> str:
    if key == "id":
        problem = f"has a job {name}, which is not in the prompts file"
    else:
        problem = f"has for {name} the {key} {json.dumps(old)}, not {json.dumps(new)}"
    return f"--out {path} is the folder of another batch: it {problem}: give a new folder, or the same batch"
