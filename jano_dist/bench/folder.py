"""The folder of a comparison: rows that are on the disk as soon as a video is made, and what it is made of.

    DIR/rows.jsonl       a line for each video, and one for each process that made some
    DIR/videos, maps     an mp4 for each (a PNG of one frame); a picture of its complexity map, if any
    DIR/full             full runs whose cases are not all done
    DIR/quality.json, pareto.png, index.html    made of the rows when all are there

A row is known by what it is of (`Plan.key`), so the same command goes on, and a larger one adds to it.
No torch.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from jano_dist.bench.cases import FULL, Case
from jano_dist.bench.outcome import Outcome
from jano_dist.config import Config
from jano_dist.errors import UserError
from jano_dist.target import write_whole

ROWS = "rows.jsonl"
_ESSENCE = ("model", "video", "sampling", "policy", "cache", "mesh")  # what of a config makes a video
_LIBRARIES = ("jano_dist", "torch", "diffusers")


@dataclass(frozen=True)
class Plan:
    """What is compared: every case on every prompt and seed, with `ranks` ranks."""

    config: Config
    cases: Sequence[Case]
    prompts: Sequence[str]
    seeds: Sequence[int]
    ranks: int

    @property
    def pairs(self) -> list[tuple[str, int]]:
        """Prompts and seeds, in the order in which they are made."""
        return [(prompt, seed) for prompt in self.prompts for seed in self.seeds]

    def key(self, name: str, prompt: str, seed: int) -> str:
        """What names the row of a case (or of `FULL`) for good."""
        config = self.config.model_dump(mode="json", include=set(_ESSENCE))
        config["sampling"]["seed"] = seed
        versions = {name: metadata.version(name) for name in _LIBRARIES}
        facts = [config, self._essence(name), prompt, self.ranks, versions]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]

    def _essence(self, name: str) -> list[Any]:
        """What a case changes, and what that which it is like does. Its own name does not count."""
        if name == FULL:
            return []
        case = next(case for case in self.cases if case.name == name)
        like = self._essence(case.like) if case.like else None
        return [dict(case.changes), case.rearrange, like]


class BenchFolder:
    """The folder that `--out` names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self) -> None:
        """Make it, or make sure that it is one of ours.

        Raises:
            UserError: it holds something else, or cannot be made.
        """
        try:
            if self.path.is_dir() and any(self.path.iterdir()) and not (self.path / ROWS).is_file():
                raise UserError(
                    f"--out {self.path} exists and is no folder of this command (no {ROWS}): give a new one"
                )
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / ROWS).touch()
        except OSError as error:
            raise UserError(
                f"--out {self.path} cannot be used ({error.strerror or error}): give another folder"
            ) from error

    def drop_empty(self) -> bool:
        """Remove it where nothing was made, and say whether that is so."""
        if self._lines():
            return False
        (self.path / ROWS).unlink(missing_ok=True)
        with suppress(OSError):  # something else is in it
            self.path.rmdir()
        return True

    def rows(self, plan: Plan) -> dict[tuple[str, str, int], dict[str, Any]]:
        """The rows of this plan that are done, by case (`FULL` too), prompt and seed; each has its video."""
        found = {row["key"]: row for row in self._lines() if "key" in row}
        keys = {
            (name, prompt, seed): plan.key(name, prompt, seed)
            for prompt, seed in plan.pairs
            for name in (FULL, *(case.name for case in plan.cases))
        }
        named = {place: {**found[key], "case": place[0]} for place, key in keys.items() if key in found}
        return {place: row for place, row in named.items() if (self.path / row["video"]).is_file()}

    def sessions(self) -> dict[str, dict[str, Any]]:
        """How the rows were made, by the session that they name."""
        return {row["session"]: row["ran"] for row in self._lines() if "ran" in row}

    def begin_session(self, name: str, ran: Mapping[str, Any]) -> None:
        """Note the process that makes the next rows."""
        self._append({"session": name, "ran": ran})

    def place(self, kind: str, name: str, key: str, suffix: str) -> Path:
        """Where a file of a row goes, below `path`."""
        word = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")[:40] or "case"
        path = self.path / kind / f"{word}-{key[:12]}{suffix}"
        path.parent.mkdir(exist_ok=True)
        return path

    def add(self, key: str, session: str, outcome: Outcome, files: Mapping[str, str | None]) -> None:
        """Add a row; it is on the disk when this returns.

        Args:
            files: `video` and `map`, below `path`.
        """
        self._append({"key": key, "session": session, **outcome.to_json(), **files})

    def write(self, name: str, text: str) -> None:
        """Write a file that is whole, or the one that was there before."""
        write_whole(self.path / name, text)

    def _append(self, row: Mapping[str, Any]) -> None:
        with (self.path / ROWS).open("ab+") as file:
            if file.tell():  # a line that was cut off when the machine went down must not take this one along
                file.seek(-1, os.SEEK_END)
                file.write(b"" if file.read(1) == b"\n" else b"\n")
            file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _lines(self) -> list[dict[str, Any]]:
        found = []
        path = self.path / ROWS
        for line in path.read_bytes().split(b"\n") if path.exists() else ():
            try:
                found.append(json.loads(line))
            except ValueError:  # the end of a line that was cut off, or of the file
                continue
        return found
