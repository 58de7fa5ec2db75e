"""Options that several commands share, and the config they make together."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from jano_dist.config import POLICIES, Config, config_names, load_config, parse_overrides
from jano_dist.geometry import usual_config


@dataclass(frozen=True)
class Call:
    """A command line, and `time.monotonic()` when it began. Typer's context carries it as `obj`."""

    arguments: Sequence[str]
    started: float


# Options that stand for a config key.
_KEYS = {
    "model": "model.name",
    "lora": "model.lora",
    "lora_2": "model.lora_2",
    "seed": "sampling.seed",
    "image": "sampling.image",
    "frames": "video.frames",
    "height": "video.height",
    "width": "video.width",
    "steps": "sampling.steps",
    "cfg": "mesh.cfg",
    "kv": "mesh.kv",
    "ulysses": "mesh.ulysses",
}

DEFAULT_CONFIG = "wan-tiny"
CONFIG_HELP = f"One of {', '.join(config_names())}, or a .yaml file."

PolicyOption = Annotated[str | None, typer.Option("--policy", help=f"{', '.join(POLICIES)}.")]
PresetOption = Annotated[str | None, typer.Option("--preset", help="conservative, balanced or fast.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="key=value, any config key; repeatable.")]
LoraOption = Annotated[
    list[str] | None,
    typer.Option("--lora", metavar="FILE[:SCALE]", help="A LoRA's file or hub name; repeatable."),
]
Lora2Option = Annotated[
    list[str] | None,
    typer.Option("--lora-2", metavar="FILE[:SCALE]", help="The same for a second expert (Wan2.2 A14B)."),
]
CfgOption = Annotated[int | None, typer.Option("--cfg", help="2: one guidance branch per half of the ranks.")]
KvOption = Annotated[int | None, typer.Option("--kv", help="Shards of a branch's keys and values.")]
UlyssesOption = Annotated[int | None, typer.Option("--ulysses", help="Ranks that share a branch's heads.")]
Launcher = Literal["local", "ray"]
LauncherOption = Annotated[Launcher, typer.Option(help="Where ranks start: this machine, or a Ray cluster.")]
AddressOption = Annotated[
    str | None, typer.Option(help="Of the Ray cluster: HOST:PORT or auto; else one of this machine's own.")
]
WaitOption = Annotated[float, typer.Option(help="Seconds to wait until the Ray cluster has room.", min=0)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def given_path(text: str) -> Path:
    """A path that was given. An empty one, as of a shell variable that is not set, would be the folder
    one is in."""
    if not text:
        raise typer.BadParameter("it is empty: give a path")
    return Path(text)


def typed(text: str) -> str:
    """Text as it was typed in UTF-8, also where the locale is another and Python kept its bytes."""
    try:
        return os.fsencode(text).decode() if any("\ud800" <= sign <= "\udfff" for sign in text) else text
    except UnicodeError:
        return text  # no UTF-8 either, which is said by whoever reads it


def named_keys(options: Mapping[str, Any]) -> dict[str, Any]:
    """Config key -> value of the option that stands for it, of those that a command has."""
    return {key: options[name] for name, key in _KEYS.items() if name in options}


def read_config(
    name: str | None,
    *,
    preset: str | None,
    policy: str | None,
    pairs: Sequence[str] | None,
    named: Mapping[str, Any],
) -> Config:
    """The config `name` with what the command line changes in it; None: the model's, or the default.

    Args:
        pairs: `key=value`, as given to --set.
        named: config key -> value of the option that stands for it; None where it was not given.

    Raises:
        UserError: see `load_config`.
    """
    overrides = config_overrides(pairs, named)
    return load_config(config_name(name, overrides), preset=preset, policy=policy, overrides=overrides)


def config_name(name: str | None, overrides: Sequence[str]) -> str:
    """The config that was asked for; without one that of the model in the overrides, or the default.

    Raises:
        UserError: the model has no such name.
    """
    if name is not None:
        return name
    model = parse_overrides(overrides).get("model.name")
    return (isinstance(model, str) and model and usual_config(model)) or DEFAULT_CONFIG


def config_overrides(pairs: Sequence[str] | None, named: Mapping[str, Any]) -> list[str]:
    """`key=value` for all that the command line changes in a config; see `read_config`."""
    overrides = [f"{key}={json.dumps(value)}" for key, value in named.items() if value is not None]
    return [*map(typed, pairs or []), *overrides]
