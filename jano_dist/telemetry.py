"""What the GPUs say of themselves while a video is made: energy, power, load, memory, NVLink.

NVIDIA's management library (NVML) is asked, through nvidia-ml-py. Where there is no driver nobody is asked,
and a figure that a GPU does not give is absent: None, not zero.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from statistics import fmean
from threading import Event, Thread
from typing import Any, NamedTuple, Protocol

import torch

from jano_dist.errors import UserError, name_ranks
from jano_dist.mesh import Mesh

_INTERVAL = 0.5  # seconds between readings; NVML renews load and power several times in a second
_PATIENCE = 1.0  # seconds for a reading that does not come back, as of a GPU that is lost
# The scope of a field that is counted for each link: the sum of all (UINT_MAX in nvml.h).
_ALL_LINKS = 2**32 - 1
# Which member of a field's value holds it, by the field's type (nvmlValueType_t in nvml.h).
_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")


class Reading(NamedTuple):
    """One GPU at one moment; None: it does not say.

    Attributes:
        power_watts: drawn, as NVML averages it (over a second on GPUs since Ampere).
        utilisation: share of NVML's last sample period in which something ran, 0 to 1.
        memory_bytes: in use, by all processes.
    """

    power_watts: float | None = None
    utilisation: float | None = None
    memory_bytes: int | None = None


class Counters(NamedTuple):
    """What one GPU has counted since its driver was loaded; None: it does not say."""

    energy_joules: float | None = None
    nvlink_sent_bytes: int | None = None
    nvlink_received_bytes: int | None = None


@dataclass(frozen=True)
class Usage:
    """One GPU while a video was made; None: it does not say. All of its processes count.

    Attributes:
        gpu: its UUID.
        energy_joules: drawn.
        power_watts, most_power_watts: mean and highest reading.
        utilisation: mean of the readings, 0 to 1.
        memory_bytes: highest reading.
        nvlink_sent_bytes, nvlink_received_bytes: data over all its links, without the protocol's share.
    """

    gpu: str | None = None
    energy_joules: float | None = None
    power_watts: float | None = None
    most_power_watts: float | None = None
    utilisation: float | None = None
    memory_bytes: int | None = None
    nvlink_sent_bytes: int | None = None
    nvlink_received_bytes: int | None = None


class Sampler(Protocol):
    """Reads one GPU."""

    def now(self) -> Reading:
        """What it does at this moment."""

    def measure(self) -> AbstractContextManager[Callable[[], Usage]]:
        """Measure what happens in the `with` block. What it gives is called afterwards, for the result."""


class NullSampler:
    """Where there is nothing to read."""

    def now(self) -> Reading:
        return Reading()

    @contextmanager
    def measure(self) -> Iterator[Callable[[], Usage]]:
        yield Usage


class NvmlSampler:
    """Reads a GPU through NVML, which has been initialised.

    Args:
        nvml: the module `pynvml`.
        uuid: of the GPU; indices mean another one where CUDA_VISIBLE_DEVICES is set.
        interval: seconds between readings.

    Raises:
        nvml.NVMLError: there is no such GPU.
    """

    def __init__(self, nvml: Any, uuid: str, interval: float = _INTERVAL) -> None:
        self._nvml, self._uuid, self._interval = nvml, uuid, interval
        self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid)

    def now(self) -> Reading:
        milliwatts = self._ask(self._nvml.nvmlDeviceGetPowerUsage)
        percent = self._ask(self._nvml.nvmlDeviceGetUtilizationRates)
        memory = self._ask(self._nvml.nvmlDeviceGetMemoryInfo)
        return Reading(
            None if milliwatts is None else milliwatts / 1e3,
            None if percent is None else percent.gpu / 100,
            None if memory is None else memory.used,
        )

    def counters(self) -> Counters:
        """What it has counted until now."""
        millijoules = self._ask(self._nvml.nvmlDeviceGetTotalEnergyConsumption)
        fields = (
            self._nvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX,
            self._nvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX,
        )
        kib = [self._field(field, _ALL_LINKS) for field in fields]
        sent, received = (None if count is None else count * 1024 for count in kib)
        return Counters(None if millijoules is None else millijoules / 1e3, sent, received)

    @contextmanager
    def measure(self) -> Iterator[Callable[[], Usage]]:
        readings: list[Reading] = []
        done = Event()

        def watch() -> None:
            while not done.wait(self._interval):
                readings.append(self.now())

        watching = Thread(target=watch, daemon=True, name="gpu readings")
        before = after = self.counters()
        watching.start()
        try:
            yield lambda: _usage(self._uuid, before, after, readings)
        finally:
            done.set()
            watching.join(_PATIENCE)
        readings.append(self.now())
        after = self.counters()

    def _field(self, field: int, scope: int) -> int | None:
        values = self._ask(lambda handle: self._nvml.nvmlDeviceGetFieldValues(handle, [(field, scope)]))
        if values is None or values[0].nvmlReturn != self._nvml.NVML_SUCCESS:
            return None
        return int(getattr(values[0].value, _MEMBERS[values[0].valueType]))

    def _ask(self, call: Callable[[Any], Any]) -> Any:
        try:
            return call(self._handle)
        except self._nvml.NVMLError:  # mostly that it is not supported; no video fails for it
            return None


def open_sampler(uuid: str | None, nvml: Any = None) -> Sampler:
    """A sampler of the GPU with this UUID, or a null one where there is no such GPU, no driver or no NVML.

    Args:
        uuid: None where a rank has no GPU.
        nvml: what is asked; None: the module `pynvml` of nvidia-ml-py.
    """
    if uuid is None:
        return NullSampler()
    try:
        nvml = nvml or import_module("pynvml")
    except ModuleNotFoundError:
        return NullSampler()
    try:
        nvml.nvmlInit()
        return NvmlSampler(nvml, uuid)
    except nvml.NVMLError:
        return NullSampler()


def gpu_uuid(device: torch.device) -> str | None:
    """The UUID of a CUDA device as NVML writes it, such as `GPU-8f6e...`; None for other devices."""
    if device.type != "cuda":
        return None
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return None if uuid is None else f"GPU-{str(uuid).removeprefix('GPU-')}"


def refuse_shared_gpus(mesh: Mesh, uuid: str | None) -> None:
    """Make sure that no two ranks compute on the same GPU: NCCL would fail, or they would halve it.

    Args:
        mesh: the ranks; they tell each other by way of the host.
        uuid: of this rank's GPU, if it has one.

    Raises:
        UserError: on every rank, where some share one.
    """
    gpus = [data.decode() for data in mesh.collect_bytes((uuid or "").encode())]
    for gpu in dict.fromkeys(filter(None, gpus)):
        ranks = [rank for rank, other in enumerate(gpus) if other == gpu]
        if len(ranks) > 1:
            raise UserError(
                f"{name_ranks(ranks)} were given the same GPU ({gpu}): start one rank for each GPU, and see "
                "that LOCAL_RANK or CUDA_VISIBLE_DEVICES differs between them"
            )


def gather_usage(mesh: Mesh, usage: Usage) -> dict[str, Any]:
    """Every rank's usage as `run.json` holds it (docs/run-json.md); the same on every rank."""
    everyone = [json.loads(text) for text in mesh.collect_bytes(json.dumps(asdict(usage)).encode())]
    ranks = {name: [each[name] for each in everyone] for name in everyone[0]}
    return {"energy_joules": _sum(ranks["energy_joules"]), "ranks": ranks}


def _usage(uuid: str, before: Counters, after: Counters, readings: Sequence[Reading]) -> Usage:
    power, utilisation, memory = (
        [figure for figure in figures if figure is not None] for figures in zip(*readings, strict=True)
    )
    spent = Counters(*map(_difference, before, after))
    return Usage(
        gpu=uuid,
        power_watts=fmean(power) if power else None,
        most_power_watts=max(power, default=None),
        utilisation=fmean(utilisation) if utilisation else None,
        memory_bytes=max(memory, default=None),
        **spent._asdict(),
    )


def _difference(before: Any, after: Any) -> Any:
    return None if before is None or after is None else after - before


def _sum(figures: Sequence[float | None]) -> float | None:
    """Of all ranks; absent where one is, because a part would pass for the whole."""
    known = [figure for figure in figures if figure is not None]
    return sum(known) if len(known) == len(figures) else None
