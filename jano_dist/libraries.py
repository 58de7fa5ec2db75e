"""What the libraries that we use say by themselves: as little as can be."""

import os
import sys
import warnings


def quiet_libraries() -> None:
    """Our progress bar is the only one; the libraries' warnings about our own hooks help nobody."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost rank is reported by us, once
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
    if not sys.warnoptions:  # `python -W` asks to see them
        warnings.filterwarnings("ignore", module="diffusers|transformers|huggingface_hub|torch")
