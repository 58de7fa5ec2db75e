"""What ranks tell each other of their GPUs, on three real ranks; the GPUs are made up."""

from dataclasses import asdict
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from jano_dist import Engine, UserError, load_config
from jano_dist.attention.kernels import TORCH
from jano_dist.mesh import Mesh
from jano_dist.observe import NullObserver
from jano_dist.telemetry import Usage, gather_usage, open_sampler, refuse_shared_gpus
from tests.gang.harness import gang
from tests.unit.fake_nvml import UUID, FakeNvml

WORLD = 3
# Of different lengths, none, and what is no text.
DATA = [[b"", b"", b""], [b"a", b"", b"ccc"], [b"\0\0", b"\xff" * 1000, b"{}"]]
USAGES = [
    Usage(gpu=f"GPU-{rank}", energy_joules=100.5 * rank, memory_bytes=2**40 + rank) for rank in range(3)
]
# Which GPU each rank has, and what is said of it.
GPUS = {
    ("a", "b", "c"): "",
    (None, None, None): "",
    ("a", None, "b"): "",
    ("a", "b", "a"): "ranks 0, 2 were given the same GPU (a)",
    ("b", "a", "a"): "ranks 1, 2 were given the same GPU (a)",
    ("a", "a", "a"): "ranks 0, 1, 2 were given the same GPU (a)",
}


def sentence(call, *arguments, **keywords):
    try:
        call(*arguments, **keywords)
    except UserError as error:
        return str(error)
    return ""


class Draws(NullObserver):
    """Each phase of rank r draws 10 (r + 1) W for 5 s."""

    def __init__(self, nvml):
        self.nvml, self.phases = nvml, []

    def phase(self, name):
        self.phases.append(name)
        self.nvml.pass_time(5, 10 * (dist.get_rank() + 1))


def tell():
    mesh = Mesh(ulysses=WORLD)
    config = load_config(
        "wan-tiny",
        policy="full",
        overrides={
            "video.frames": 1,
            "video.height": 64,
            "video.width": 64,
            "sampling.steps": 2,
            "model.max_sequence_length": 8,
        },
    )
    nvml = FakeNvml()
    draws = Draws(nvml)
    with mock.patch("jano_dist.engine.gpu_uuid", return_value=UUID):
        refused = sentence(Engine, config, observer=draws), list(draws.phases)
    # NCCL cannot connect a GPU with itself: what the ranks tell each other of it goes by way of the host.
    on_gpus = mock.patch("jano_dist.engine.pick_device", return_value=torch.device("cuda", 0))
    no_kernel = mock.patch("jano_dist.engine.kernel_for", return_value=TORCH)  # which would look at the GPU
    with on_gpus, no_kernel, mock.patch("jano_dist.engine.gpu_uuid", return_value=UUID):
        refused_on_gpus = sentence(Engine, config, observer=draws), list(draws.phases)
    engine = Engine(config, observer=draws, sampler=open_sampler(UUID, nvml))
    made = engine.generate("a red ball", observer=draws)
    without_gpu = Engine(config, model=engine.model, mesh=engine.mesh).generate("a red ball")
    absent = asdict(USAGES[mesh.rank]) | ({"energy_joules": None} if mesh.rank == 1 else {})
    return {
        "data": [mesh.collect_bytes(each[mesh.rank]) for each in DATA],
        "gpus": {gpus: sentence(refuse_shared_gpus, mesh, gpus[mesh.rank]) for gpus in GPUS},
        "all": gather_usage(mesh, USAGES[mesh.rank]),
        "one absent": gather_usage(mesh, Usage(**absent)),
        "refused": (refused, refused_on_gpus),
        "record": made.record["telemetry"],
        "without": without_gpu.record["telemetry"],
        "spans": mesh.take_spans(),
    }


@pytest.fixture(scope="module")
def told():
    return gang(WORLD, tell)


def test_bytes_of_any_length(told):
    for rank in told:
        assert rank["data"] == DATA


def test_ranks_that_share_a_gpu(told):
    for rank in told:
        for gpus, words in GPUS.items():
            assert rank["gpus"][gpus].startswith(words)
            assert bool(rank["gpus"][gpus]) == bool(words)


def test_an_engine_on_a_shared_gpu_is_refused_before_it_loads(told):
    for rank in told:
        for words, phases in rank["refused"]:
            assert words.startswith(
                f"ranks 0, 1, 2 were given the same GPU ({UUID}): start one rank for each GPU"
            )
            assert phases == []


def test_energy_of_a_video(told):
    """Encode, denoise, decode: 3 x 5 s on ranks of 10, 20 and 30 W. What loading drew is not in it."""
    for rank in told:
        assert rank["record"]["energy_joules"] == pytest.approx(15 * (10 + 20 + 30))
        ranks = rank["record"]["ranks"]
        assert ranks["energy_joules"] == pytest.approx([150, 300, 450])
        assert ranks["gpu"] == [UUID] * WORLD
        assert ranks["memory_bytes"] == [10**9] * WORLD
        assert ranks["nvlink_sent_bytes"] == [0] * WORLD


def test_what_ranks_say_is_gathered_exactly(told):
    for rank in told:
        assert rank["all"]["energy_joules"] == 100.5 * 3
        assert rank["all"]["ranks"]["memory_bytes"] == [2**40, 2**40 + 1, 2**40 + 2]
        assert rank["all"]["ranks"]["gpu"] == ["GPU-0", "GPU-1", "GPU-2"]


def test_a_sum_without_a_part_is_absent(told):
    for rank in told:
        assert rank["one absent"]["energy_joules"] is None
        assert rank["one absent"]["ranks"]["energy_joules"] == [0, None, 201]


def test_without_gpus_all_is_absent(told):
    names = [
        *("gpu", "energy_joules", "power_watts", "most_power_watts", "utilisation", "memory_bytes"),
        *("nvlink_sent_bytes", "nvlink_received_bytes"),
    ]
    for rank in told:
        assert rank["without"] == {"energy_joules": None, "ranks": {name: [None] * WORLD for name in names}}


def test_a_mesh_keeps_no_spans_unless_it_is_asked(told):
    assert [rank["spans"] for rank in told] == [[]] * WORLD
