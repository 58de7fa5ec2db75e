"""Options that several measurements share."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from jano_dist.cli.options import given_path
from jano_dist.errors import UserError

Value = TypeVar("Value", int, float, str)

OutOption = Annotated[
    Path,
    typer.Option(parser=given_path, metavar="DIR", help="For table, plot, JSON; the same command goes on."),
]


def listed(text: str, kind: Callable[[str], Value], option: str) -> tuple[Value, ...]:
    """The values of a list such as `1,2,4`, each once.

    Raises:
        UserError: one is none of its kind, or there are none.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    try:
        values = tuple(dict.fromkeys(kind(word) for word in words))
    except ValueError as error:
        raise UserError(
            f"{option} {text!r} is no list of numbers: write for example {option} 1,2,4"
        ) from error
    if not values:
        raise UserError(f"{option} is empty: give at least one value")
    return values
