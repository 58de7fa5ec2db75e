"""A GPU in the place of NVIDIA's library: it draws the power it is told, for the time it is told.

Errors, constants and structures are those of nvidia-ml-py itself.
"""

from collections.abc import Collection
from threading import Event
from typing import Any

import pynvml

UUID = "GPU-01234567-89ab-cdef-0123-456789abcdef"
LINKS = 3


class FakeNvml:
    """What `import pynvml` gives.

    Args:
        lacks: names of functions that this GPU does not support, and of fields (`field 138`).
        broken: error that initialising ends in.
        types: of the values of fields, sent and received.
    """

    def __init__(
        self,
        lacks: Collection[str] = (),
        broken: int | None = None,
        types: tuple[int, int] = (pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG,) * 2,
    ) -> None:
        self._lacks, self._broken, self._types = lacks, broken, types
        self._millijoules, self._kib = 7_000_123, {138: [11, 22, 33], 139: [5, 5, 5]}
        self.powers: list[float] = []  # told so far, in watts
        self.loads: list[int] = []  # told so far, in percent
        self.used = 10**9
        self.told_three_times = Event()

    def pass_time(self, seconds: float, watts: float) -> None:
        self._millijoules += round(1000 * seconds * watts)

    def send(self, link: int, sent_kib: int, received_kib: int) -> None:
        self._kib[138][link] += sent_kib
        self._kib[139][link] += received_kib

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's names
        if self._broken is not None:
            raise pynvml.NVMLError(self._broken)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid != UUID:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return "handle"

    def __getattr__(self, name: str) -> Any:
        """Functions of a handle, some of which are not supported; all else is nvidia-ml-py's."""
        if not name.startswith("nvml"):
            return getattr(pynvml, name)

        def call(handle: str, *arguments: Any) -> Any:
            assert handle == "handle"
            if name in self._lacks:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return getattr(self, f"_{name}")(*arguments)

        return call

    def _nvmlDeviceGetPowerUsage(self) -> int:  # noqa: N802
        self.powers.append(100.0 + 50 * (len(self.powers) % 4))
        if len(self.powers) == 3:
            self.told_three_times.set()
        return round(1000 * self.powers[-1])

    def _nvmlDeviceGetUtilizationRates(self) -> Any:  # noqa: N802
        self.loads.append(20 * (1 + len(self.loads) % 5))
        rates = pynvml.c_nvmlUtilization_t()
        rates.gpu, rates.memory = self.loads[-1], 99
        return rates

    def _nvmlDeviceGetMemoryInfo(self) -> Any:  # noqa: N802
        info = pynvml.c_nvmlMemory_t()
        info.total, info.free, info.used = 80 * 10**9, 80 * 10**9 - self.used, self.used
        return info

    def _nvmlDeviceGetTotalEnergyConsumption(self) -> int:  # noqa: N802
        return self._millijoules

    def _nvmlDeviceGetFieldValues(self, fields: list[tuple[int, int] | int]) -> list[Any]:  # noqa: N802
        """As nvml.h has it: the scope is a link, UINT_MAX all of them; without a scope it is link 0."""
        values = []
        for asked in fields:
            field, scope = asked if isinstance(asked, tuple) else (asked, 0)
            value = pynvml.c_nvmlFieldValue_t()
            value.fieldId, value.scopeId = field, scope
            links = self._kib[field]
            kind = self._types[field - 138]
            value.valueType = kind
            value.nvmlReturn = pynvml.NVML_SUCCESS
            if f"field {field}" in self._lacks:
                value.nvmlReturn = pynvml.NVML_ERROR_NOT_SUPPORTED
            member = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal"}[kind]
            setattr(value.value, member, sum(links) if scope == 0xFFFFFFFF else links[scope])
            values.append(value)
        return values
