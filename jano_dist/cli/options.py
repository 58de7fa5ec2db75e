"""Options that several commands share, and the config they make together."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from jano_dist.config import Config, config_names, load_config

CONFIG_HELP = f"One of {', '.join(config_names())}, or a .yaml file."

PolicyOption = Annotated[str | None, typer.Option("--policy", help="jano or full.")]
PresetOption = Annotated[str | None, typer.Option("--preset", help="conservative, balanced or fast.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="key=value, any config key; repeatable.")]
CfgOption = Annotated[int | None, typer.Option("--cfg", help="2: one guidance branch per half of the ranks.")]
KvOption = Annotated[int | None, typer.Option("--kv", help="Shards of a branch's keys and values.")]
UlyssesOption = Annotated[int | None, typer.Option("--ulysses", help="Ranks that share a branch's heads.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def read_config(
    name: str,
    *,
    preset: str | None,
    policy: str | None,
    pairs: Sequence[str] | None,
    named: Mapping[str, Any],
) -> Config:
    """The config `name` with what the command line changes in it.

    Args:
        pairs: `key=value`, as given to --set.
        named: config key -> value of the option that stands for it; None where it was not given.

    Raises:
        UserError: see `load_config`.
    """
    overrides = [f"{key}={json.dumps(value)}" for key, value in named.items() if value is not None]
    return load_config(name, preset=preset, policy=policy, overrides=[*(pairs or []), *overrides])
