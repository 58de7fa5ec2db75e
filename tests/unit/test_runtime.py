"""Which device a rank computes on, and since when. The devices are made up; the rest is real."""

import subprocess
import sys
import time

import pytest
import torch

from jano_dist.config import RuntimeConfig
from jano_dist.errors import UserError
from jano_dist.gang import LAUNCHED
from jano_dist.runtime import pick_device, since_launch

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES")


@pytest.fixture
def machine(monkeypatch):
    """`machine(devices, current, RANK=..)`: so many CUDA devices, one of them current, and a place."""

    def put(devices, current=0, **environment):
        now = [current]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: now[0])
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: now.__setitem__(0, device))
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))

    return put


def rank(local_rank, local_world, **environment):
    """A rank on the second of two such machines."""
    numbers = {"RANK": local_world + local_rank, "WORLD_SIZE": 2 * local_world}
    return {**numbers, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": local_world, **environment}


@pytest.mark.parametrize("asked", ["auto", "cpu"])
def test_without_a_device_it_is_the_cpu(machine, asked):
    machine(0)
    assert pick_device(RuntimeConfig(device=asked)) == torch.device("cpu")


def test_cpu_as_asked_where_there_are_devices(machine):
    machine(4, **rank(2, 4))
    assert pick_device(RuntimeConfig(device="cpu")) == torch.device("cpu")
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("asked", ["auto", "cuda"])
@pytest.mark.parametrize("local_rank", range(4))
def test_each_rank_has_the_device_of_its_local_rank(machine, asked, local_rank):
    machine(4, **rank(local_rank, 4, CUDA_VISIBLE_DEVICES="4,5,6,7"))
    assert pick_device(RuntimeConfig(device=asked)) == torch.device("cuda", local_rank)
    assert torch.cuda.current_device() == local_rank


def test_one_process_stays_on_the_current_device(machine):
    machine(4, current=3)
    assert pick_device(RuntimeConfig(device="auto")) == torch.device("cuda", 3)


@pytest.mark.parametrize("visible", ["3", "GPU-8a6b"])
def test_a_rank_that_sees_only_its_own_device_takes_that(machine, visible):
    """As under SLURM's `--gpus-per-task=1` and Ray."""
    machine(1, **rank(3, 4, CUDA_VISIBLE_DEVICES=visible))
    assert pick_device(RuntimeConfig(device="cuda")) == torch.device("cuda", 0)


@pytest.mark.parametrize("environment", [{}, {"CUDA_VISIBLE_DEVICES": ""}, {"CUDA_VISIBLE_DEVICES": "0,1"}])
def test_a_single_device_that_others_see_too_is_not_shared(machine, environment):
    machine(1, **rank(1, 2, **environment))
    with pytest.raises(
        UserError, match=r"^2 ranks were started on a machine with 1 CUDA device: start at most 1, "
    ):
        pick_device(RuntimeConfig(device="auto"))


def test_more_ranks_than_devices(machine):
    machine(3, **rank(0, 4))
    with pytest.raises(
        UserError, match=r"^4 ranks .* with 3 CUDA devices: start at most 3, or set runtime.device"
    ):
        pick_device(RuntimeConfig(device="cuda"))


def test_cuda_asked_for_where_there_is_none(machine):
    machine(0)
    with pytest.raises(UserError, match=r"^runtime.device is cuda but torch sees no CUDA device: "):
        pick_device(RuntimeConfig(device="cuda"))


class TestSinceLaunch:
    def test_from_the_supervisors_order(self, monkeypatch):
        ordered = time.time() - 100
        monkeypatch.setenv(LAUNCHED, str(ordered))
        before, moment = time.time(), time.perf_counter()
        then = since_launch(moment)
        assert before - ordered - 0.01 <= then <= time.time() - ordered + 0.01
        assert since_launch(moment - 7) == pytest.approx(then - 7, abs=0.01)

    def test_else_from_the_process_start(self):
        """It lies between the order to start it and its first line, to the kernel's hundredth of a second."""
        program = (
            "import time; first = time.time(); from jano_dist.runtime import since_launch; "
            "age = since_launch(time.perf_counter()); print(first, time.time() - age)"
        )
        before = time.time()
        said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        first, launched = map(float, said.stdout.split())
        assert before - 0.03 <= launched <= first + 0.03
