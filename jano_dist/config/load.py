"""YAML files, presets and `--set a.b=c` merged into one `Config`."""

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from jano_dist.config.sentences import nearest, sentence
from jano_dist.config.settings import Config, SamplingConfig
from jano_dist.errors import UserError

# In a checkout the folder lies beside the package; in an installed wheel, inside it.
_CONFIG_FOLDERS = tuple(folder / "configs" for folder in Path(__file__).parents[1:3])


def config_names() -> list[str]:
    """Names of the configs that ship with the package."""
    return sorted({path.stem for folder in _CONFIG_FOLDERS for path in folder.glob("*.yaml")})


def load_config(
    name: str | Path,
    *,
    preset: str | None = None,
    policy: str | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
) -> Config:
    """Read a config by name or path and merge preset, policy and overrides into it, in that order.

    Args:
        name: a shipped config's name (`config_names()`) or the path of a YAML file.
        preset: a row of the file's `presets`; None takes the file's own `preset`.
        policy: a policy's name, such as `full`; None keeps the file's.
        overrides: `["a.b=c", ...]` (values are YAML) or `{"a.b": value}`; they win over all else.

    Raises:
        UserError: unknown config, preset or key (names the nearest), or a value that does not fit.
    """
    _check_arguments(name, preset=preset, policy=policy, overrides=overrides)
    raw = _read(_find(name))
    presets, own_preset = raw.pop("presets", None), raw.pop("preset", None)
    pairs = parse_overrides(overrides)
    # These two choose what the other overrides change, so they come first, however they are given.
    policy = pairs.pop("policy.name", policy)
    preset = pairs.pop("preset", preset)
    preset = own_preset if preset is None else preset
    _set_policy(raw, policy)
    if preset is not None:
        row = _preset_row(str(preset), presets, str(name))
        if raw["policy"]["name"] == "jano":
            raw["policy"] |= row
            raw["preset"] = preset
    for key, value in pairs.items():
        _assign(raw, key, value)
    return _validate(raw, str(name))


def parse_overrides(overrides: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    """`{"a.b": value}` for the overrides that `load_config` takes; of several for a key the last one counts.

    Raises:
        UserError: one is not of the form key=value, or its value is not valid YAML.
    """
    if isinstance(overrides, Mapping):
        return dict(overrides)
    pairs = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(
                f"--set {text!r} is not of the form key=value: write for example --set sampling.steps=30"
            )
        try:
            pairs[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(
                f"the value of --set {text!r} is not valid YAML: put it in double quotes inside the shell's"
            ) from error
    return pairs


def change_config(
    raw: Mapping[str, Any], overrides: Sequence[str] | Mapping[str, Any], source: str
) -> Config:
    """A config from `raw`, as `Config.model_dump` gives it, with some keys changed.

    Args:
        overrides: see `load_config`. source: what it is called in a sentence.

    Raises:
        UserError: unknown key, or a value that does not fit.
    """
    changed = copy.deepcopy(dict(raw))
    for key, value in parse_overrides(overrides).items():
        _assign(changed, key, value)
    return _validate(changed, source)


def change_sampling(sampling: SamplingConfig, changes: Mapping[str, Any]) -> SamplingConfig:
    """`sampling` with some of its keys changed; None keeps a key as it is.

    Raises:
        UserError: a value that does not fit.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    try:
        return SamplingConfig.model_validate({**sampling.model_dump(), **given})
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(sentence({**first, "loc": ("sampling", *first["loc"])}, {})) from error


def _check_arguments(name: object, *, preset: object, policy: object, overrides: object) -> None:
    """The types of `load_config`'s arguments; it would fail on others somewhere inside."""
    if not isinstance(name, str | Path):
        raise UserError(f"a config is loaded by its name or path, not by {name!r}: give one of the two")
    for word, value in {"preset": preset, "policy": policy}.items():
        if not isinstance(value, str | None):
            raise UserError(f"the {word} is given by its name, not by {value!r}: give a str, or None")
    texts = list(overrides) if isinstance(overrides, Sequence | Mapping) else [overrides]
    if isinstance(overrides, str) or not all(isinstance(text, str) for text in texts):
        raise UserError(
            f"overrides are a list of 'key=value' or a dictionary of keys and values, not {overrides!r}: "
            "write for example {'sampling.steps': 30}"
        )


def _find(name: str | Path) -> Path:
    if not str(name):
        raise UserError(f"the config has no name: choose one of {', '.join(config_names())}, or give a file")
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if os.path.isfile(path):  # false also for a name that is too long
            return path
        problem = "is not a file" if os.path.exists(path) else "does not exist"
        raise UserError(f"config file {path} {problem}: give a file or one of {', '.join(config_names())}")
    for folder in _CONFIG_FOLDERS:
        if os.path.isfile(folder / f"{name}.yaml"):
            return folder / f"{name}.yaml"
    known = config_names()
    raise UserError(
        f"there is no config {str(name)!r}{nearest(str(name), known)}: "
        f"choose one of {', '.join(known)} or give the path of a .yaml file"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"config file {path} cannot be read ({error.strerror}): give another one") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not valid YAML ({' '.join(str(error).split())}): correct the file"
        ) from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no settings: write at least the sections model and video")
    return raw


def _set_policy(raw: dict[str, Any], policy: str | None) -> None:
    """Switch the policy by name; the settings of another policy do not carry over."""
    own = raw.get("policy") or {}
    if not isinstance(own, dict):
        raise UserError(f"policy is a section, not {own!r}: write for example policy: {{name: jano}}")
    named = own.get("name", "jano")
    raw["policy"] = {**own, "name": named} if policy in (None, named) else {"name": policy}


def _preset_row(preset: str, presets: Any, source: str) -> dict[str, Any]:
    if not presets:
        raise UserError(f"config {source} has no presets: do not ask for {preset!r}, or add it to the file")
    if not isinstance(presets, dict) or not all(isinstance(row, dict) for row in presets.values()):
        raise UserError(f"config {source}: presets must hold rows of keys and values: correct the file")
    if preset not in presets:
        names = [str(name) for name in presets]
        raise UserError(
            f"config {source} has no preset {preset!r}{nearest(preset, names)}: "
            f"choose one of {', '.join(names)}"
        )
    row: dict[str, Any] = presets[preset]
    return row


def _assign(raw: dict[str, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    node = raw
    for section in sections:
        child = node.get(section)
        node[section] = dict(child) if isinstance(child, dict) else {}
        node = node[section]
    node[leaf] = value


def _validate(raw: dict[str, Any], source: str) -> Config:
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"config {source}: {sentence(error.errors()[0], raw)}") from error
