"""How long collectives take, on the host's clock or on a CUDA device's stream."""

import time
from typing import Any, NamedTuple

import torch


class Span(NamedTuple):
    """One collective of one rank, or the waiting for one that was begun earlier.

    Attributes:
        name: what it was, such as `all-to-all ulysses`.
        began, ended: seconds on the clock of `time.perf_counter`. On a CUDA device when its stream came to it
            and had done it, some tens of microseconds later than it was.
        nbytes: sent to others.
    """

    name: str
    began: float
    ended: float
    nbytes: int


class Clock:
    """Sums the seconds between starts and stops, on the CUDA stream where there is one, without waiting."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[Any] = []

    def start(self) -> None:
        self._marks.append(self._now())

    def stop(self, name: tuple[str, ...] = (), nbytes: int = 0) -> None:
        self.start()

    def take(self) -> float | None:
        return self._sum()

    def _sum(self) -> float:
        marks, self._marks = self._marks, []
        pairs = zip(marks[::2], marks[1::2], strict=True)
        if not self._cuda:
            return float(sum(end - begin for begin, end in pairs))
        torch.cuda.synchronize()
        return float(sum(begin.elapsed_time(end) for begin, end in pairs)) / 1e3

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def take_spans(self) -> list[Span]:
        return []


class NoClock(Clock):
    """Measures nothing."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))

    def start(self) -> None:
        return

    def take(self) -> float | None:
        return None


class SpanClock(Clock):
    """Also knows what it measured, and when that was."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._labels: list[tuple[tuple[str, ...], int]] = []
        self._spans: list[Span] = []
        self._align()

    def stop(self, name: tuple[str, ...] = (), nbytes: int = 0) -> None:
        super().stop()
        self._labels.append((name, nbytes))

    def take(self) -> float | None:
        marks, labels, self._labels = self._marks, self._labels, []
        seconds = self._sum()
        times = map(self._on_the_host, marks)
        self._spans += [
            Span(" ".join(name), began, ended, nbytes)
            for (name, nbytes), began, ended in zip(labels, times, times, strict=True)
        ]
        self._align()
        return seconds

    def take_spans(self) -> list[Span]:
        self.take()
        spans, self._spans = self._spans, []
        return spans

    def _align(self) -> None:
        """One event whose time is known on the host too: anew at every look, because the clocks drift."""
        if self._cuda:
            self._known = self._now()
            torch.cuda.synchronize()
            self._known_at = time.perf_counter()

    def _on_the_host(self, mark: Any) -> float:
        if not self._cuda:
            return float(mark)
        return self._known_at + float(self._known.elapsed_time(mark)) / 1e3
