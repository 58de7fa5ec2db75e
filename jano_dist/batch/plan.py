"""A prompts file as jobs. What is wrong with a line is said with its number, before anything starts."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jano_dist.config import Config, change_sampling, check_prompt
from jano_dist.errors import UserError

_KINDS = (".jsonl", ".txt")
_SHARED = ("model", "mesh", "runtime")  # sections that belong to a gang, not to a job
# A line's short names of config keys.
_SHORT = {
    "seed": "sampling.seed",
    "negative_prompt": "sampling.negative_prompt",
    "image": "sampling.image",
}
_SAMPLED = {"sampling.seed", "sampling.negative_prompt"}  # what `Engine.generate` takes for each video
_SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_TAKEN = ("logs", "batch.json", "failures.jsonl", "results.jsonl")  # in the batch's folder


@dataclass(frozen=True)
class Job:
    """One video of a batch.

    Attributes:
        id: names its folder. line: of the prompts file, from 1.
        config: index into the plan's; seed and negative prompt count instead of that config's.
    """

    id: str
    line: int
    prompt: str
    seed: int
    negative_prompt: str
    config: int


@dataclass(frozen=True)
class Plan:
    """What a batch is of.

    Attributes:
        configs: all that its jobs need; the first is the command line's own, if a job has it.
        jobs: in the order of the prompts file.
    """

    configs: tuple[Config, ...]
    jobs: tuple[Job, ...]


def read_plan(
    path: Path, configure: Callable[[Mapping[str, Any]], Config], *, skip_bad: bool
) -> tuple[Plan, list[str]]:
    """The jobs of a prompts file.

    Args:
        path: `.jsonl`: on every line an object with `prompt` and whatever else; `.txt`: on every line a
            prompt. Empty lines do not count.
        configure: `{"a.b": value}` -> the command line's config with these changes, checked.
        skip_bad: go on without the lines that are wrong.

    Returns:
        The plan, and a sentence for every line that is left out.

    Raises:
        UserError: a line is wrong, or the file is no prompts file.
    """
    builder, problems = _Builder(configure), []
    for number, content in _lines(path):
        try:
            text = _decoded(content)
            if text:
                builder.add(number, _fields(text) if path.suffix == ".jsonl" else {"prompt": text})
        except UserError as error:
            if error is builder.unusable:
                raise  # the command line's fault, not the line's
            problems.append(f"{path}, line {number}: {error}")
            if not skip_bad:
                raise UserError(f"{problems[-1]} (--skip-bad goes on without it)") from error
    if not builder.jobs:
        raise UserError(f"{path} has no {'good line' if problems else 'prompt'}: write one on each line")
    return Plan(tuple(builder.configs), tuple(builder.jobs)), problems


class _Builder:
    """Jobs, and the configs they share.

    Attributes:
        unusable: what is wrong with the command line's own config, where no line changes it: an
            image-to-video model has no image but those of the lines.
    """

    def __init__(self, configure: Callable[[Mapping[str, Any]], Config]) -> None:
        self._configure = configure
        self.configs, self.jobs = list[Config](), list[Job]()
        self._places: dict[str, int] = {}  # of a config, by what is changed in it
        self._lines: dict[str, int] = {}  # by id
        self.unusable: UserError | None = None
        try:
            self._place({})
        except UserError as error:
            self.unusable = error

    def add(self, line: int, fields: Mapping[str, Any]) -> None:
        settings = _settings(fields)
        check_prompt(fields["prompt"])
        name = self._named(fields.get("id", f"{line:04}"))
        place = self._place({key: value for key, value in settings.items() if key not in _SAMPLED})
        changes = {key.partition(".")[2]: settings[key] for key in _SAMPLED & settings.keys()}
        sampling = change_sampling(self.configs[place].sampling, changes)
        self._lines[name.lower()] = line
        job = Job(name, line, fields["prompt"], sampling.seed, sampling.negative_prompt, place)
        self.jobs.append(job)

    def _named(self, name: object) -> str:
        if not isinstance(name, str) or not _SAFE_ID.fullmatch(name) or ".jano-dist-" in name:
            raise UserError(
                f"the id {name!r} names no folder everywhere: use at most 100 of the signs A-Z a-z 0-9 . _ "
                "-, and no . or - in front"
            )
        if name.lower() in _TAKEN:
            raise UserError(f"the id {name!r} is the name of a file of the batch itself: use another")
        if name.lower() in self._lines:  # there are file systems that know no upper case
            raise UserError(f"the id {name!r} is that of line {self._lines[name.lower()]}, too: use another")
        return name

    def _place(self, settings: Mapping[str, Any]) -> int:
        known = json.dumps(settings, sort_keys=True)
        if known == "{}" and self.unusable:
            raise self.unusable
        if known not in self._places:
            self.configs.append(self._configure(settings))
            self._places[known] = len(self.configs) - 1
        return self._places[known]


def _settings(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Config key -> value of all that a line sets."""
    if "prompt" not in fields:
        raise UserError('it has no prompt: write {"prompt": "..."}')
    settings: dict[str, Any] = {}
    for name, value in fields.items():
        if name in ("prompt", "id"):
            continue
        key = _SHORT.get(name, name)
        if key in settings:
            raise UserError(f"it sets {key} twice: leave one out")
        if value is None and name in _SHORT:
            raise UserError(f"its {name} is null: give one, or leave it out")
        if key.partition(".")[0] in _SHARED:
            raise UserError(f"{key} is the same for the whole batch: leave it out, and use --set {key}=...")
        settings[key] = value
    return settings


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    if path.suffix not in _KINDS:
        raise UserError(
            f"{path} is no prompts file: give a .jsonl file with an object on each line, or a .txt file with "
            "a prompt on each"
        )
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"the prompts file {path} cannot be read ({reason}): give another one") from error
    yield from enumerate(content.split(b"\n"), start=1)


def _decoded(content: bytes) -> str:
    try:
        return content.decode().strip()
    except UnicodeDecodeError as error:
        raise UserError("it is not valid UTF-8: type it anew") from error


def _fields(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise UserError(f'it is not valid JSON ({error}): write {{"prompt": "..."}}') from error
    if not isinstance(fields, dict):
        raise UserError('it is no JSON object: write {"prompt": "..."}')
    return fields


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = next(name for name in fields if [each for each, _ in pairs].count(name) > 1)
        raise UserError(f"it has the key {twice!r} twice: leave one out")
    return fields
