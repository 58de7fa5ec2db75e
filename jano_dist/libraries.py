"""The libraries that we use: they are to say little, and to be there soon."""

import gc
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def quiet_libraries() -> None:
    """Our progress bar is the only one; the libraries' warnings about our own hooks help nobody."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost rank is reported by us, once
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
    if not sys.warnoptions:  # `python -W` asks to see them
        warnings.filterwarnings("ignore", module="diffusers|transformers|huggingface_hub|torch")


@contextmanager
def uncollected() -> Iterator[None]:
    """Imports without garbage collection, which would search all that is imported again and again: about 6
    seconds in place of 8. It is left out of later searches, too; nothing of it is ever thrown away."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.freeze()
            gc.enable()
