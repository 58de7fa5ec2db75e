"""`FILE_OR_NAME[:SCALE]`: a LoRA and how strongly it counts."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Words in the names of those that were distilled to few steps.
_DISTILLED = ("lightx2v", "causvid", "lcm", "turbo", "hyper", "lightning", "distill", "dmd")


def split_lora(text: str) -> tuple[str, float]:
    """File or hub name, and scale; without one it is 1.

    Raises:
        ValueError: no name, or a scale that is no finite number.
    """
    name, colon, given = text.rpartition(":")
    if not colon:
        name, given = text, "1"
    try:
        scale = float(given)
    except ValueError:
        scale = math.nan
    if not name or not math.isfinite(scale):
        raise ValueError(
            f"the LoRA {text!r} is not FILE or FILE:SCALE with a number as its scale: write for example "
            f"{name or 'style.safetensors'}:0.8"
        )
    return name, scale


def one_or_more(value: Any) -> Any:
    """A single LoRA may stand without a list around it."""
    return [value] if isinstance(value, str) else value


def checked(loras: Sequence[str]) -> Sequence[str]:
    """The LoRAs, all of them well written.

    Raises:
        ValueError: see `split_lora`.
    """
    for text in loras:
        split_lora(text)
    return loras


def is_distilled(name: str) -> bool:
    """Whether a LoRA's name says that it was distilled to few steps."""
    return any(word in Path(name).name.lower() for word in _DISTILLED)
