"""What ranks must agree on before they begin: else they make different videos, or wait for ever."""

import hashlib
from collections.abc import Mapping, Sequence

from jano_dist.errors import UserError, name_ranks
from jano_dist.mesh import Mesh


def check_alike(everyone: Mesh, facts: Mapping[str, bytes], picture: bytes) -> None:
    """Compare with rank 0. All ranks call it together.

    Args:
        facts: what must be the same, each under what to call it where it is not, such as `another config`.
        picture: its digest, compared where both ranks have the file; only the coordinator needs it.

    Raises:
        UserError: something is not the same.
    """
    if everyone.world == 1:
        return
    everyone.await_everyone()  # each node may have had to fetch the model
    for what, fact in facts.items():
        _refuse(what, everyone.differing(hashlib.sha256(fact).digest()))
    first, *others = everyone.collect_bytes(picture)
    _refuse("another image", [rank for rank, own in enumerate(others, 1) if own and first and own != first])


def _refuse(what: str, ranks: Sequence[int]) -> None:
    if ranks:
        raise UserError(
            f"{what} on {name_ranks(ranks)} than on rank 0: start every rank with the same command line, "
            "files and versions"
        )
