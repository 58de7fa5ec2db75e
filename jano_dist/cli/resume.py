"""A run that was not finished: what it was of, and how to say that it can go on."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jano_dist.cli import INTERRUPTED
from jano_dist.cli.options import config_overrides
from jano_dist.config import Config, change_config
from jano_dist.errors import Interrupted, RunError, UserError
from jano_dist.snapshot import facts_of, newest_whole, require_same_run, snapshot_files
from jano_dist.target import unfinished


def unfinished_run(
    out: Path, prompt: str | None, *, pairs: Sequence[str] | None, named: Mapping[str, Any]
) -> tuple[str, Config]:
    """Prompt and config of the unfinished run of `out`. How ranks share the work may be changed.

    Args:
        prompt: as given; None takes the run's. pairs, named: see `read_config`.

    Raises:
        UserError: nothing whole is there, or the command line asks for another video.
    """
    packed = newest_whole(unfinished(out))
    if packed is None:
        raise UserError(
            f"--resume {out}: no whole snapshot is in {unfinished(out)}: give the --out of a run that was "
            "not finished, or start anew without --resume"
        )
    facts = facts_of(packed)
    raw = {**facts["config"], "mesh": {}}  # there may be another number of ranks now
    config = change_config(raw, config_overrides(pairs, named), f"of the unfinished run {out}")
    wanted = {**facts, "config": config.model_dump(mode="json")}
    require_same_run(wanted if prompt is None else {**wanted, "prompt": prompt}, facts)
    return facts["prompt"], config


@contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Where a run ends early and snapshots are left, say how to go on."""
    try:
        yield
    except RunError as error:
        if snapshot_files(unfinished(out)) and str(error):
            raise type(error)(f"{error}; to go on: {_command(out)}") from error
        raise
    except KeyboardInterrupt as error:
        if snapshot_files(unfinished(out)):
            raise Interrupted(f"{INTERRUPTED}; to go on: {_command(out)}") from error
        raise


def _command(out: Path) -> str:
    return f"jano-dist generate --resume {out}"
