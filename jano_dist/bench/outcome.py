"""What one run is worth beside the full one, and what many are worth together. No torch."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

# What is summed up of every case -> which end of it is the worst.
FIGURES = {
    "work": max,
    "speedup_flops": min,
    "speedup": min,
    "speedup_whole": min,
    "psnr": min,
    "ssim": min,
    "flip": max,
    "lpips": max,
    "flicker": min,
    "flicker_change": min,
}
IDENTICAL = "identical"  # JSON has no infinity


@dataclass(frozen=True)
class Outcome:
    """One run compared with the full one of the same prompt and seed.

    Attributes:
        case, prompt, seed: of which it is.
        config: of the run, as JSON.
        seconds: `denoise`, and `whole` (encode, denoise and decode).
        full_seconds: the full run's; None where another process made that: it may have been slower or faster.
        work: counted FLOPs over the full run's.
        kinds: of every step. tokens: shares of the tokens that steps computed.
        levels: share of the tokens at each level.
        quality: name -> value, of the frames before they are encoded; None where it could not be computed.
            `psnr` is `inf` for equal frames.
    """

    case: str
    prompt: str
    seed: int
    config: dict[str, Any]
    seconds: dict[str, float]
    full_seconds: dict[str, float] | None
    work: float
    kinds: list[str]
    tokens: list[float]
    levels: dict[str, float]
    quality: dict[str, float | None]

    @property
    def psnr(self) -> float:
        """In dB, `inf` for equal frames."""
        value = self.quality["psnr"]
        assert value is not None
        return value

    @property
    def speedup(self) -> dict[str, float] | None:
        """The full run's seconds over these, `denoise` and `whole`; None where they cannot be compared."""
        if self.full_seconds is None:
            return None
        return {name: self.full_seconds[name] / seconds for name, seconds in self.seconds.items()}

    def to_json(self) -> dict[str, Any]:
        """As it is written; equal frames have the `psnr` "identical"."""
        quality = {name: IDENTICAL if value == math.inf else value for name, value in self.quality.items()}
        return {**vars(self), "quality": quality}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Outcome":
        """What `to_json` gave; other keys do not count."""
        own = {name: row[name] for name in cls.__dataclass_fields__}
        quality = {name: math.inf if value == IDENTICAL else value for name, value in own["quality"].items()}
        return cls(**{**own, "quality": quality})


def figures(outcome: Outcome, full: Outcome) -> dict[str, float | None]:
    """`FIGURES` of one run; None where there is none."""
    speedup = outcome.speedup or {}
    flicker, still = outcome.quality.get("flicker"), full.quality.get("flicker")
    return {
        "work": outcome.work,
        "speedup_flops": 1 / outcome.work if outcome.work else None,
        "speedup": speedup.get("denoise"),
        "speedup_whole": speedup.get("whole"),
        **{name: outcome.quality.get(name) for name in ("psnr", "ssim", "flip", "lpips", "flicker")},
        "flicker_change": None if flicker is None or still is None else flicker - still,
    }


def summary(pairs: Iterable[tuple[Outcome, Outcome]]) -> dict[str, Any]:
    """Mean, median and worst of a case's runs.

    Args:
        pairs: (run, its full run), at least one.

    Returns:
        `videos`, how many; `worst_video`, prompt and seed of the lowest PSNR; and each of `FIGURES`:
        `{mean, median, worst, videos}`, or None. Equal frames have no PSNR in dB: they are left out of the
        three, and counted as `identical`.
    """
    pairs = list(pairs)
    each = [figures(outcome, full) for outcome, full in pairs]
    worst = min((outcome for outcome, _ in pairs), key=lambda outcome: outcome.psnr)
    values = {name: [row[name] for row in each] for name in FIGURES}
    return {
        "videos": len(pairs),
        "worst_video": {"prompt": worst.prompt, "seed": worst.seed},
        **{name: _three(own, FIGURES[name]) for name, own in values.items()},
    }


def _three(values: Sequence[float | None], end: Any) -> dict[str, float] | None:
    known = [value for value in values if value is not None]
    finite = [value for value in known if math.isfinite(value)]
    found: dict[str, float] = {"videos": len(known)}
    if len(finite) < len(known):
        found["identical"] = len(known) - len(finite)
    if finite:
        found |= {"mean": mean(finite), "median": median(finite), "worst": end(finite)}
    return found if known else None
