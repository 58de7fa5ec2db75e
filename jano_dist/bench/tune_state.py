"""`DIR/tune.json`: all that `jano-dist tune` has measured. It is whole whenever a process ends. No torch."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jano_dist.bench.search import CEILING, FULL, Candidate, Measured
from jano_dist.bench.space import Prediction
from jano_dist.errors import UserError
from jano_dist.target import write_whole

_FORMAT = 1
_NAME = "tune.json"
_EARLY = {"full", "logs", f"{_NAME}.unfinished"}
_FACTS = ("config", "prompts", "candidates")  # of which a tuning is, and that must stay as they are
_CONFIG = ("model", "video", "sampling", "policy", "mesh", "cache")  # sections that count; others may change


@dataclass(frozen=True)
class Run:
    """One measurement.

    Attributes:
        name: of the candidate, or `full`. prompt: its number.
        cost: seconds that it took of the budget. call: how often the command had been started.
        outcome: what `Outcome.to_json` gives but for the config; of a full run its `seconds`.
    """

    name: str
    prompt: int
    cost: float
    call: int
    outcome: Mapping[str, Any]

    @property
    def measured(self) -> Measured:
        """As the search sees it; wall time is that of encoding, denoising and decoding."""
        seconds = float(self.outcome["seconds"]["whole"])
        if self.name == FULL:
            return Measured(seconds, 1.0, CEILING, self.cost)
        psnr = self.outcome["quality"]["psnr"]
        decibels = CEILING if psnr == "identical" else min(float(psnr), CEILING)
        return Measured(seconds, float(self.outcome["work"]), decibels, self.cost)


@dataclass
class TuneState:
    """What is known. Written to as the tuning goes on.

    Attributes:
        facts: config, prompts and candidates, as JSON.
        where: device, mesh and versions that measured; empty before the first run.
        spent: seconds of the budget, by all calls. calls: how often the command was started.
        predictions: by candidate; empty before the full runs are there.
        left_out: name -> reason of candidates that are not tried.
        result: of the last call that ended by itself.
    """

    facts: dict[str, Any]
    where: dict[str, Any] = field(default_factory=dict)
    spent: float = 0.0
    calls: int = 0
    predictions: dict[str, Prediction] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)

    def log(self) -> dict[tuple[str, int], Measured]:
        """For the search."""
        return {(run.name, run.prompt): run.measured for run in self.runs}


def facts_of(
    config: Mapping[str, Any], prompts: Sequence[tuple[str, int]], candidates: Sequence[Candidate]
) -> dict[str, Any]:
    """`TuneState.facts`.

    Args:
        config: as JSON. prompts: each with its seed.
    """
    return {
        "config": dict(config),
        "prompts": [{"prompt": prompt, "seed": seed} for prompt, seed in prompts],
        "candidates": [{**asdict(each), "changes": dict(each.changes)} for each in candidates],
    }


class TuneFolder:
    """The folder that `--out` names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, facts: Mapping[str, Any]) -> TuneState:
        """What an earlier call has left of the same tuning; else a new state.

        Raises:
            UserError: the folder is another tuning's, or none, or cannot be used.
        """
        try:
            if os.path.lexists(self.path) and not self._is_new():
                state = self._read()
                self._require_same(facts, state.facts)
                return state
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--out {self.path} cannot be used ({error.strerror or error}): give another folder"
            ) from error
        return TuneState(json.loads(json.dumps(facts)))

    def save(self, state: TuneState) -> None:
        """Put the whole state on the disk."""
        content = {
            "jano_dist_tune": _FORMAT,
            "changed": datetime.now(UTC).isoformat(timespec="seconds"),
            **{key: value for key, value in vars(state).items() if key not in ("predictions", "runs")},
            "predictions": {name: asdict(each) for name, each in state.predictions.items()},
            "runs": [asdict(run) for run in state.runs],
        }
        write_whole(self.path / _NAME, json.dumps(content, indent=1, allow_nan=False) + "\n")

    def read(self) -> TuneState:
        """What `save` wrote.

        Raises:
            UserError: it is not there.
        """
        return self._read()

    def _is_new(self) -> bool:
        """Whether nothing is in it but what a call makes before its first measurement is known."""
        return self.path.is_dir() and {path.name for path in self.path.iterdir()} <= _EARLY

    def _read(self) -> TuneState:
        try:
            content = json.loads((self.path / _NAME).read_text(encoding="utf-8"))
            if content.pop("jano_dist_tune") != _FORMAT:
                raise ValueError
            content.pop("changed")
            predictions = {name: Prediction(**each) for name, each in content.pop("predictions").items()}
            runs = [Run(**each) for each in content.pop("runs")]
            return TuneState(**content, predictions=predictions, runs=runs)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"--out {self.path} is not the folder of a tuning (no {_NAME} of ours): give a new folder, "
                "or that of a tuning to go on with"
            ) from error

    def _require_same(self, new: Mapping[str, Any], old: Mapping[str, Any]) -> None:
        ours, theirs = _essence(new), _essence(old)
        for key, value in theirs.items():
            if ours.get(key) != value:
                raise UserError(
                    f"--out {self.path} is the folder of another tuning ({key} is not the same): give a new "
                    "folder, or the same config and prompts"
                )


def _essence(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What must not change, by names that a user knows."""
    plain: dict[str, Any] = json.loads(json.dumps({key: facts.get(key) for key in _FACTS}))
    sections = {f"the section {name}": plain["config"].get(name) for name in _CONFIG}
    return {
        **sections,
        "the list of prompts": plain["prompts"],
        "the list of candidates": plain["candidates"],
    }
