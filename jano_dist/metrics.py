"""What Ray shows to Prometheus of our gangs, where Ray runs.

Ranks are processes that Ray does not know. So this is made in one that it knows (the driver, or the actor
that starts a node's ranks), which is told what becomes of the ranks.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

# Seconds of a step: wan-tiny on a CPU to 14B at 720p on few GPUs.
_BOUNDARIES = [0.03, 0.1, 0.3, 1, 3, 10, 30, 100]


class RayMetrics:
    """Counts steps, tokens, bytes, videos, recoveries, energy; shows power and memory of GPUs.

    Args:
        gang: a label on everything here, to tell the gangs of a batch from each other.
        api: what has Counter, Gauge and Histogram; None: `ray.util.metrics`.
    """

    def __init__(self, gang: str, api: Any = None) -> None:
        api = api or import_module("ray.util.metrics")
        self._labels = {"gang": gang}

        def counter(name: str, of: str, *labels: str) -> Any:
            return api.Counter(f"jano_dist_{name}", description=of, tag_keys=("gang", *labels))

        def gauge(name: str, of: str) -> Any:
            return api.Gauge(f"jano_dist_{name}", description=of, tag_keys=("gang", "gpu"))

        self._steps = counter("steps", "Denoising steps done.", "kind")
        self._tokens = counter("tokens", "Tokens computed, of each guidance branch.", "kind")
        self._sent = counter("sent_bytes", "Bytes that ranks sent to each other in steps.")
        # For means: Ray 2.60 sums a histogram by the middles of its buckets.
        self._spent = counter("denoising_seconds", "Seconds spent in denoising steps.", "kind")
        self._videos = counter("videos", "Videos finished.")
        self._recoveries = counter("recoveries", "Gangs started again after a failure.")
        self._energy = counter("energy_joules", "Energy that the GPUs of finished videos drew.")
        self._power = gauge("gpu_power_watts", "Power that a GPU draws.")
        self._memory = gauge("gpu_memory_bytes", "Memory in use on a GPU.")
        self._seconds = api.Histogram(
            "jano_dist_step_seconds",
            description="Seconds of a step.",
            boundaries=_BOUNDARIES,
            tag_keys=("gang", "kind"),
        )

    def step(self, record: Mapping[str, Any]) -> None:
        """A step that ended, as `run.json` has it; a rank's `StepRecord` as a dict will do, whose bytes are
        its own."""
        labels = {**self._labels, "kind": record["kind"]}
        self._steps.inc(1, tags=labels)
        self._seconds.observe(record["seconds"], tags=labels)
        _add(self._spent, record["seconds"], labels)
        _add(self._tokens, record["tokens"], labels)
        _add(self._sent, record["comm_bytes"], self._labels)

    def video(self, record: Mapping[str, Any]) -> None:
        """A video that is finished, as `run.json` has it."""
        self._videos.inc(1, tags=self._labels)
        _add(self._energy, record["telemetry"]["energy_joules"], self._labels)

    def recovery(self) -> None:
        """A gang that failed is started again."""
        self._recoveries.inc(1, tags=self._labels)

    def gpu(self, uuid: str, power_watts: float | None, memory_bytes: int | None) -> None:
        """What a GPU says of itself now; None: nothing."""
        for gauge, figure in ((self._power, power_watts), (self._memory, memory_bytes)):
            if figure is not None:
                gauge.set(figure, tags={**self._labels, "gpu": uuid})


def _add(counter: Any, amount: float | None, labels: Mapping[str, str]) -> None:
    if amount:  # Ray counts nothing but what is above zero
        counter.inc(amount, tags=dict(labels))
