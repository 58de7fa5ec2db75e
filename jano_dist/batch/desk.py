"""How a gang is given its next job: its coordinator asks over the gang's store, the driver answers.

    want/0 -> job/0, want/1 -> job/1, ...

Asking for the next one says that the last one is done.
"""

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store

NOTHING_LEFT, NOTHING_NOW = -1, -2  # answers that are no job's index
_PAUSE = 0.02  # seconds


def ask(store: "Store", turn: int) -> int:
    """The coordinator's: index of the job to be made now, or one of the two words that there is none."""
    store.set(f"want/{turn}", "")
    while not store.check([f"job/{turn}"]):
        time.sleep(_PAUSE)
    return int(store.get(f"job/{turn}"))


def asked(store: "Store", turn: int) -> bool:
    """The driver's: whether the question number `turn` was asked."""
    return bool(store.check([f"want/{turn}"]))


def answer(store: "Store", turn: int, index: int) -> None:
    """The driver's: the answer to question number `turn`."""
    store.set(f"job/{turn}", str(index))


def note(store: "Store", sentence: str) -> None:
    """The coordinator's: what the user should know of the present job."""
    earlier = store.get("notes").decode() if store.check(["notes"]) else ""
    store.set("notes", f"{earlier}{sentence}\n")


def take_notes(store: "Store") -> list[str]:
    """The driver's: all such sentences since it was asked last."""
    if not store.check(["notes"]):
        return []
    sentences = store.get("notes").decode().splitlines()
    store.delete_key("notes")
    return sentences
