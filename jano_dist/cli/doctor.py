"""`jano-dist doctor`: what this machine has."""

import json

from rich.console import Console

from jano_dist.cli import importing
from jano_dist.cli.options import JsonOption


def doctor(as_json: JsonOption = False) -> None:
    """Say what this machine has and what that allows."""
    with importing():
        from jano_dist.doctor import inspect_machine, show

    facts = inspect_machine()
    if as_json:
        print(json.dumps(facts))
    else:
        show(facts, Console())
