"""The ways a command ends early, each with one sentence for the user; and how these count."""

from collections.abc import Sequence


class UserError(Exception):
    """Bad input: the message says in one sentence what is wrong and what to do. Exit code 2."""


class RunError(Exception):
    """The run itself went wrong (for example non-finite latents): one sentence. Exit code 1."""


class Interrupted(Exception):  # noqa: N818 - it names what happened
    """Ctrl-C, with a sentence on what is left; a KeyboardInterrupt loses it in typer. Exit code 130."""


class NotFinite(RunError):  # noqa: N818 - it names what happened
    """The latents became NaN or infinite: going on from a snapshot would end in the same way."""


class PeerLost(RunError):  # noqa: N818 - it names what happened
    """A collective failed because another rank is gone or silent: seldom the first cause of a failure."""


def count(number: int, noun: str) -> str:
    """`1 rank`, or `2 ranks`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def name_ranks(ranks: Sequence[int]) -> str:
    """`rank 1`, or `ranks 1, 3`."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
