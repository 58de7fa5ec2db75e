"""The account against the engine: what real ranks compute, keep and send is what was predicted."""

import math
from itertools import product
from unittest import mock

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from jano_dist import Engine, load_config
from jano_dist.account import cache_bytes, sent_bytes, working_bytes
from jano_dist.account.caches import own_rows
from jano_dist.account.memory import branches_on_rank, model_elements
from jano_dist.account.work import kv_rows
from jano_dist.degrees import Degrees
from jano_dist.models.sizes import read_sizes
from jano_dist.observe import NullObserver
from tests.gang.harness import gang
from tests.gang.maps import FollowMap

# Cache kind, its dtype, the model's dtype.
SETTINGS = list(product(("kv", "hidden"), ("native", "fp8"), ("float32", "bfloat16")))
# (active, moderate, static) of 35 tokens, which few gangs divide; and fewer active ones than ranks.
MAP, ODD_MAP = (6, 12, 17), (1, 3, 31)
TOKENS, TEXT = 35, 32
CASES = [
    *product(SETTINGS, [MAP]),
    *product((("kv", "native", "float32"), ("hidden", "fp8", "bfloat16")), [ODD_MAP]),
]
COUNTED = [(setting, sizes) for setting, sizes in CASES if setting[1:] == ("native", "float32")]
KINDS = ("full", "refresh", "active", "moderate", "active")

# What FlopCounterMode does not know: the CPU's attention, from the shapes of q, k and v.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
        q, k, v
    )
}


def config(split, setting):
    kind, dtype, model = setting
    overrides = {"cache.kind": kind, "cache.dtype": dtype, "model.dtype": model}
    overrides |= {"video.frames": 1, "video.height": 80, "video.width": 112, "model.vae_parallel": "single"}
    overrides |= {"sampling.steps": len(KINDS), "model.max_sequence_length": TEXT}
    overrides |= {f"mesh.{dim}": degree for dim, degree in Degrees(*split)._asdict().items()}
    return load_config("wan-tiny", policy="full", overrides=overrides)


class Work(NullObserver):
    """torch's count of what the forwards of each step multiply."""

    def __init__(self, forward):
        self.flops, self._forward, self._step = [], forward, 0

    def __call__(self, *arguments):
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            rows = self._forward(*arguments)
        self._step += counter.get_total_flops()
        return rows

    def step(self, record, steps):
        self.flops.append(self._step)
        self._step = 0


def generations(split):
    """Latents, map and record of every case on this rank; of some also the FLOPs of each step."""
    models, made = {}, {}
    for setting, sizes in CASES:
        engine = Engine(
            config(split, setting), model=models.get(setting[2]), policies=FollowMap(*sizes, KINDS)
        )
        model = models[setting[2]] = engine.model
        work = Work(model.forward)
        forward = work if (setting, sizes) in COUNTED else model.forward
        with mock.patch.object(model, "forward", forward):
            video = engine.generate("a red ball moves left", seed=0, observer=work)
        made[setting, sizes] = video.latents.numpy(), video.levels, video.record, work.flops
    return made


@pytest.fixture(scope="module")
def alone():
    return generations((1, 1, 1))


@pytest.fixture(scope="module")
def wan_tiny():
    return read_sizes("wan-tiny", local=True)


slow = [(1, 2, 1), (2, 1, 1), (2, 1, 2), (1, 1, 3), (1, 3, 1), (2, 2, 1), (2, 1, 3), (1, 2, 3), (1, 3, 2)]


@pytest.fixture(
    scope="module",
    params=[(1, 1, 2), (2, 2, 2), *(pytest.param(split, marks=pytest.mark.slow) for split in slow)],
    ids=lambda split: "{}x{}x{}".format(*split),
)
def together(request):
    """A mesh, and every case on each of its ranks."""
    split = request.param
    return Degrees(*split), gang(math.prod(split), generations, split, timeout=600, collective_timeout=300)


def steps(ranks, case):
    """(rank, index, step) of a case, as every rank saw it."""
    for rank in range(len(ranks)):
        for index, step in enumerate(ranks[rank][case][2]["steps"]):
            yield rank, index, step


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tokens(together, case):
    """Dealt out evenly, and each branch computes all of them."""
    degrees, ranks = together
    active, moderate, static = case[1]
    tokens = {"active": active, "moderate": active + moderate}
    for rank, index, step in steps(ranks, case):
        wanted = tokens.get(KINDS[index], active + moderate + static)
        assert step["tokens"] == wanted
        assert step["ranks"]["tokens"][rank] == own_rows(wanted, degrees, rank)
        assert sum(step["ranks"]["tokens"]) == degrees.cfg * wanted


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bytes_sent(together, wan_tiny, case):
    degrees, ranks = together
    for rank, index, step in steps(ranks, case):
        sent = sent_bytes(wan_tiny, config(degrees, case[0]), degrees, step["tokens"], rank=rank).total
        others = len(ranks) - 1
        decision = 16 * others if rank == 0 else 0  # two int64
        new_map = (32 + (TOKENS if rank == 0 else 0)) * others if index == 1 else 0  # and its digest
        assert step["ranks"]["comm_bytes"][rank] == sent + decision + new_map, (rank, index)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bytes_kept(together, wan_tiny, case):
    degrees, ranks = together
    settings = config(degrees, case[0])
    shapes = (wan_tiny.geometry, TOKENS, degrees, settings.cache, model_elements(wan_tiny, settings)[0])
    memory = ranks[0][case][2]["memory"]
    branches = branches_on_rank(wan_tiny.geometry, settings, degrees)
    assert memory["cache_bytes_per_rank"] == branches * cache_bytes(*shapes)
    assert memory["workspace_bytes_per_rank"] == working_bytes(*shapes)


@pytest.mark.parametrize("case", COUNTED, ids=str)
def test_flops(together, wan_tiny, case):
    """All ranks together, as torch counts them: KV-resident attention is shared out by shards, not rows."""
    degrees, ranks = together
    settings, geometry = config(degrees, case[0]), wan_tiny.geometry
    branches, world = branches_on_rank(geometry, settings, degrees), range(len(ranks))
    for index, step in enumerate(ranks[0][case][2]["steps"]):
        with_kv = kv_rows(settings, step["tokens"], TOKENS)
        forwards = [
            geometry.forward_flops(
                own_rows(step["tokens"], degrees, rank),
                TOKENS,
                TEXT,
                kv_rows=own_rows(with_kv, degrees, rank),
            )
            for rank in world
        ]
        text = geometry.text_flops(TEXT) if index == 0 else 0  # whole on every rank
        measured = sum(ranks[rank][case][3][index] for rank in world)
        assert measured == branches * (sum(forwards) + len(ranks) * text), index


@pytest.mark.parametrize("case", CASES, ids=str)
def test_latents_are_those_of_one_process(together, alone, case):
    _, ranks = together
    wanted, levels, record, _ = alone[case]
    for latents, own_levels, own_record, _ in (rank[case] for rank in ranks):
        assert np.array_equal(latents, ranks[0][case][0])
        assert np.array_equal(own_levels, levels)
        assert own_record["flops"] == record["flops"]
    off = np.abs(ranks[0][case][0] - wanted)
    _, dtype, model = case[0]
    if (dtype, model) == ("native", "float32"):
        assert off.max() <= 1e-4
    else:  # rounding to 8 or 16 bits falls either way, and a code is off by 1/16 at most
        assert off.mean() <= (1e-3 if model == "float32" else 0.1)
    assert wanted.std() > 1


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_one_process_in_every_format(alone, setting):
    """`hidden` makes the same keys and values again; 8 bits are off by 1/16 of a value at most."""
    _, dtype, model = setting
    off = np.abs(alone[setting, MAP][0] - alone[("kv", "native", model), MAP][0])
    assert off.max() <= 1e-5 if dtype == "native" else 0 < off.mean() <= 1 / 16
