"""Figures of a made-up GPU, in NVML's units, against what it was told to draw; and where there is none."""

import threading
from contextlib import suppress
from statistics import fmean
from types import SimpleNamespace
from unittest import mock

import pynvml
import pytest
import torch

from jano_dist.telemetry import NullSampler, NvmlSampler, Reading, Usage, gpu_uuid, open_sampler
from tests.unit.fake_nvml import UUID, FakeNvml

FIGURES = {
    "nvmlDeviceGetTotalEnergyConsumption": {"energy_joules"},
    "nvmlDeviceGetPowerUsage": {"power_watts", "most_power_watts"},
    "nvmlDeviceGetUtilizationRates": {"utilisation"},
    "nvmlDeviceGetMemoryInfo": {"memory_bytes"},
    "nvmlDeviceGetFieldValues": {"nvlink_sent_bytes", "nvlink_received_bytes"},
    "field 138": {"nvlink_sent_bytes"},
    "field 139": {"nvlink_received_bytes"},
}


def use(nvml):
    """A video of 8 s at 250 W and 2 s at 75 W; what comes before and after does not count."""
    sampler = open_sampler(UUID, nvml)
    nvml.pass_time(seconds=100, watts=40)
    nvml.send(0, 1, 1)
    with sampler.measure() as usage:
        nvml.pass_time(seconds=8, watts=250)
        nvml.send(0, 1000, 10)
        nvml.used = 3 * 10**9
        nvml.pass_time(seconds=2, watts=75)
        nvml.send(2, 24, 0)
    nvml.pass_time(seconds=100, watts=40)
    nvml.send(1, 7, 7)
    return usage()


def test_energy_and_links_are_what_was_drawn_and_sent_meanwhile():
    usage = use(FakeNvml())
    assert usage.gpu == UUID
    assert usage.energy_joules == pytest.approx(8 * 250 + 2 * 75, rel=1e-12)
    assert usage.nvlink_sent_bytes == 1024 * (1000 + 24)
    assert usage.nvlink_received_bytes == 1024 * 10
    assert usage.memory_bytes == 3 * 10**9


def test_readings():
    """Taken by a thread of their own, in watts and shares; all of them count."""
    nvml = FakeNvml()
    with NvmlSampler(nvml, UUID, interval=0.001).measure() as usage:
        assert nvml.told_three_times.wait(60)
    assert len(nvml.powers) >= 4  # and one at the end
    assert usage().power_watts == pytest.approx(fmean(nvml.powers))
    assert usage().most_power_watts == 250.0
    assert usage().utilisation == pytest.approx(fmean(nvml.loads) / 100)


def test_now():
    assert open_sampler(UUID, FakeNvml()).now() == Reading(100.0, 0.2, 10**9)


@pytest.mark.parametrize("lacking", FIGURES)
def test_what_is_not_supported_is_absent_and_nothing_else(lacking):
    usage = use(FakeNvml(lacks=[lacking]))
    absent = {name for name, figure in vars(usage).items() if figure is None}
    assert absent == FIGURES[lacking]


def test_a_gpu_that_supports_nothing():
    assert use(FakeNvml(lacks=list(FIGURES))) == Usage(gpu=UUID)


@pytest.mark.parametrize(
    "kind",
    [
        pynvml.NVML_VALUE_TYPE_UNSIGNED_INT,
        pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG,
        pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG,
        pynvml.NVML_VALUE_TYPE_DOUBLE,
    ],
)
def test_counts_of_other_types(kind):
    usage = use(FakeNvml(types=(kind, pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG)))
    assert usage.nvlink_sent_bytes == 1024 * (1000 + 24)
    assert usage.nvlink_received_bytes == 1024 * 10


@pytest.mark.parametrize("error", [None, ValueError("boom")])
def test_no_thread_is_left(error):
    before = threading.active_count()
    with suppress(ValueError), open_sampler(UUID, FakeNvml()).measure():
        assert threading.active_count() == before + 1
        if error:
            raise error
    assert threading.active_count() == before


class TestNothingToRead:
    @pytest.mark.parametrize(
        ("uuid", "nvml"),
        [
            (None, FakeNvml()),
            ("GPU-another", FakeNvml()),
            (UUID, FakeNvml(broken=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)),
            (UUID, FakeNvml(broken=pynvml.NVML_ERROR_DRIVER_NOT_LOADED)),
        ],
    )
    def test_null_sampler(self, uuid, nvml):
        sampler = open_sampler(uuid, nvml)
        assert isinstance(sampler, NullSampler)
        assert sampler.now() == Reading(None, None, None)
        with sampler.measure() as usage:
            pass
        assert set(vars(usage()).values()) == {None}

    def test_nvidia_ml_py_is_not_installed(self):
        with mock.patch.dict("sys.modules", {"pynvml": None}):
            assert isinstance(open_sampler(UUID), NullSampler)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
    def test_no_driver(self):
        """What nvidia-ml-py itself says here."""
        assert isinstance(open_sampler(UUID), NullSampler)


class TestUuid:
    def test_a_cpu_has_none(self):
        assert gpu_uuid(torch.device("cpu")) is None

    @pytest.mark.parametrize(
        ("torchs", "nvmls"),
        [
            ({"uuid": UUID.removeprefix("GPU-")}, UUID),  # as torch writes it
            ({"uuid": UUID}, UUID),
            ({}, None),
        ],
    )
    def test_of_a_gpu(self, torchs, nvmls):
        with mock.patch("torch.cuda.get_device_properties", return_value=SimpleNamespace(**torchs)) as asked:
            assert gpu_uuid(torch.device("cuda", 3)) == nvmls
        asked.assert_called_once_with(torch.device("cuda", 3))
