"""diffusers and transformers without their progress bars and warnings, while we call them."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import diffusers.utils.logging
import transformers.utils.logging

_LIBRARIES = (diffusers.utils.logging, transformers.utils.logging)


@contextmanager
def quiet() -> Iterator[None]:
    """No bars, no warnings; errors are raised as ever. A program's own calls keep what it has chosen."""
    before = [(logs, logs.is_progress_bar_enabled(), logs.get_verbosity()) for logs in _LIBRARIES]
    for logs in _LIBRARIES:
        logs.disable_progress_bar()
        logs.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="diffusers|transformers|huggingface_hub|torch")
            yield
    finally:
        for logs, bars, verbosity in before:
            logs.set_verbosity(verbosity)
            if bars:
                logs.enable_progress_bar()
