"""Predicted seconds against hand-computed cases, closed formulas, and the counts they rest on."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from jano_dist import cli
from jano_dist.account.machines import MACHINES, Link, machine_named
from jano_dist.account.memory import token_count
from jano_dist.account.seconds import (
    DECODE_FLOPS,
    Peers,
    decode_seconds,
    exchange_seconds,
    peers_of,
    ring_seconds,
    step_seconds,
    waited_for,
)
from jano_dist.account.work import collectives, step_work, steps_of
from jano_dist.config import load_config
from jano_dist.degrees import Degrees, choose_degrees
from jano_dist.models.sizes import read_sizes
from jano_dist.tokens.schedule import StepKind
from tests.cli.sentence import assert_sentence

N = 75_600
H100 = MACHINES["h100"]
# Round numbers: what follows can be done in one's head.
SLOW = replace(
    H100,
    gemm=1e12,
    attention=2e12,
    memory=1e15,
    layer_seconds=0.0,
    step_seconds=0.5,
    collective_seconds=0.1,
    near=Link(100.0, 0.01),
    far=Link(10.0, 1.0),
)


@pytest.fixture(scope="module")
def large():
    return read_sizes("Wan-AI/Wan2.1-T2V-14B-Diffusers", local=True)


def config(policy="jano", **overrides):
    overrides = {key.replace("__", "."): value for key, value in overrides.items()}
    return load_config("wan2.1-14b-720p", policy=policy, overrides=overrides)


def seconds(sizes, settings, degrees, rows, machine=H100, kind=StepKind.ACTIVE, local_world=8):
    work = step_work(sizes, settings, degrees, kind, rows)
    return work, step_seconds(sizes, settings, degrees, work, machine, local_world=local_world)


class TestExchange:
    def test_inside_a_node(self):
        """2 calls, 3 peers: 2 (0.1 + 3 x 0.01) + 600 bytes at 100 a second."""
        assert exchange_seconds(600, 2, Peers(3, 0), SLOW) == pytest.approx(0.26 + 6)

    def test_between_nodes(self):
        """1 near and 3 far peers, 100 bytes to each: the far ones take 300 / 10, longer than 100 / 100."""
        assert exchange_seconds(400, 1, Peers(1, 3), SLOW) == pytest.approx(0.1 + 0.01 + 3 + 30)

    def test_nobody_and_nothing(self):
        assert exchange_seconds(100, 1, Peers(0, 0), SLOW) == 0
        assert exchange_seconds(0, 0, Peers(3, 0), SLOW) == 0
        assert exchange_seconds(0, 1, Peers(1, 0), SLOW) == pytest.approx(0.11)

    @given(
        st.floats(0, 1e12),
        st.integers(0, 100),
        st.integers(0, 7),
        st.integers(0, 127),
        st.floats(1, 100),
        st.sampled_from(["near", "far"]),
    )
    def test_a_faster_link_is_never_slower(self, nbytes, calls, near, far, factor, link):
        old = getattr(H100, link)
        faster = replace(H100, **{link: Link(old.bandwidth * factor, old.latency / factor)})
        peers = Peers(near, far)
        assert exchange_seconds(nbytes, calls, peers, faster) <= exchange_seconds(nbytes, calls, peers, H100)


class TestPeers:
    @pytest.mark.parametrize(
        ("degrees", "local_world", "wanted"),
        [
            ((1, 1, 1), 1, {"cfg": (0, 0), "kv": (0, 0), "ulysses": (0, 0), "sequence": (0, 0)}),
            ((2, 1, 4), 8, {"cfg": (1, 0), "kv": (0, 0), "ulysses": (3, 0), "sequence": (3, 0)}),
            ((2, 1, 8), 8, {"cfg": (0, 1), "kv": (0, 0), "ulysses": (7, 0), "sequence": (7, 0)}),
            ((2, 4, 8), 8, {"cfg": (0, 1), "kv": (0, 3), "ulysses": (7, 0), "sequence": (7, 24)}),
            ((1, 4, 4), 8, {"cfg": (0, 0), "kv": (1, 2), "ulysses": (3, 0), "sequence": (7, 8)}),
            # Ranks 5 to 9 lie on both sides of the border: rank 8 has 3 of its peers in the other node.
            ((1, 2, 5), 8, {"cfg": (0, 0), "kv": (0, 1), "ulysses": (1, 3), "sequence": (1, 8)}),
        ],
    )
    def test_by_hand(self, degrees, local_world, wanted):
        assert peers_of(Degrees(*degrees), local_world) == wanted


class TestStep:
    def test_counted_flops_over_the_rates(self, large):
        """A full step on one GPU is two forwards; the account's FLOPs are checked by torch's counter."""
        settings = config("full")
        work, step = seconds(large, settings, Degrees(1, 1, 1), N, SLOW, StepKind.FULL)
        attention = 2 * 40 * 4 * N * (N + 512) * 5120
        assert work.rank_attention == attention
        assert work.rank_flops == 2 * large.geometry.forward_flops(N, N, 512)
        assert step.attention == pytest.approx(attention / 2e12)
        assert step.products == pytest.approx((work.rank_flops - attention) / 1e12)
        assert (step.fixed, step.sent) == (0.5, 0)
        assert step.total == pytest.approx(
            step.products + step.attention + step.pointwise + step.fixed + step.sent
        )

    def test_few_tokens_wait_for_weights_and_keys(self, large):
        settings = config()
        _, step = seconds(large, settings, Degrees(2, 1, 1), 1)
        layer = large.layers[0].plain * 2 + large.layers[0].float32 * 4
        assert step.products == pytest.approx(40 * layer / H100.memory)
        assert step.attention == pytest.approx(2 * 40 * N * 5120 * 2 / H100.memory)

    def test_a_step_that_computes_nothing_takes_the_loop_alone(self, large):
        _, step = seconds(large, config(), Degrees(2, 4, 8), 0, kind=StepKind.SKIP)
        assert step.total == step.fixed == H100.step_seconds

    @pytest.mark.parametrize("ulysses", [2, 4, 8])
    @pytest.mark.parametrize("rows", [N, N // 5])
    def test_ulysses_bytes(self, large, ulysses, rows):
        """Four of W values per token in a layer, of which (u - 1) / u leave the rank; two calls per layer."""
        degrees = Degrees(2, 1, ulysses)
        work, step = seconds(large, config(), degrees, rows)
        sent = 40 * 4 * (rows / ulysses) * 5120 * 2 * (ulysses - 1) / ulysses
        assert work.sent.ulysses == pytest.approx(sent, rel=1e-3)
        latency = 80 * (H100.collective_seconds + (ulysses - 1) * H100.near.latency)
        if ulysses < 8:  # both branches are in one node
            assert step.ulysses == pytest.approx(work.sent.ulysses / H100.near.bandwidth + latency)

    def test_kv_bytes_between_nodes(self, large):
        degrees = Degrees(2, 4, 8)
        work, step = seconds(large, config(), degrees, N, replace(H100, overlaps=False))
        assert work.calls.kv == 40 * 2 * math.ceil(N / 16_384)
        assert collectives(large, config(), degrees, N, "cpu").kv == 40 * 2 * math.ceil(N / 4096)
        wire = 40 * (N / 4) * (3 * 640 * 2 + 3 * (640 * 2 + 5 * 4))  # queries out, partial outputs back
        assert work.sent.kv == pytest.approx(wire, rel=1e-3)
        latency = work.calls.kv * (H100.collective_seconds + 3 * H100.far.latency)
        assert step.kv == pytest.approx(work.sent.kv / H100.far.bandwidth + latency)

    def test_chunks_travel_while_others_compute(self, large):
        """5 chunks: a fifth of the exchange is waited for, the rest where attention is shorter."""
        degrees = Degrees(2, 4, 8)
        _, apart = seconds(large, config(), degrees, N, replace(H100, overlaps=False))
        _, beside = seconds(large, config(), degrees, N)
        assert apart.kv < apart.attention
        assert beside.kv == pytest.approx(apart.kv / 5)
        assert beside.attention == apart.attention
        assert waited_for(10, 4, 2) == 5 + 3
        assert waited_for(10, 40, 2) == 5
        assert waited_for(10, 40, 1) == 10  # one chunk: nothing to compute meanwhile

    def test_hidden_needs_one_collective_more(self, large):
        """Where keys and values are made of more rows than queries are; see `Ulysses.to_heads`."""
        hidden = config(cache__kind="hidden")
        assert collectives(large, hidden, Degrees(1, 1, 2), N // 4, "cuda").ulysses == 2 * 40 * 3
        assert collectives(large, hidden, Degrees(1, 1, 2), N, "cuda").ulysses == 2 * 40 * 2
        assert collectives(large, config(), Degrees(1, 1, 2), N // 4, "cuda").ulysses == 2 * 40 * 2

    @pytest.mark.parametrize("world", [1, 2, 8, 16, 64, 128])
    def test_faster_machines_are_never_slower(self, large, world):
        settings = config()
        degrees = choose_degrees(settings.mesh, world=world, heads=40, guided=True, local_world=min(world, 8))
        _, before = seconds(large, settings, degrees, N // 5)
        for rate in ("gemm", "attention", "memory"):
            faster = replace(H100, **{rate: 2 * getattr(H100, rate)})
            assert seconds(large, settings, degrees, N // 5, faster)[1].total <= before.total
        for link in ("near", "far"):
            faster = replace(H100, **{link: Link(2 * getattr(H100, link).bandwidth, 0.0)})
            assert seconds(large, settings, degrees, N // 5, faster)[1].total <= before.total


class TestRing:
    def test_bytes_are_all_keys_and_values(self, large):
        degrees = Degrees(1, 16, 1)
        work, _ = seconds(large, config(), degrees, N // 5)
        assert work.sent.ring == 2 * 40 * 15 * 2 * (N // 16) * 5120 * 2

    def test_waited_for_is_what_attention_does_not_hide(self, large):
        degrees = Degrees(1, 16, 1)
        work, step = seconds(large, config(), degrees, N // 50)
        hop = 80 * (H100.collective_seconds + H100.far.latency) + 80 * 2 * (N / 16) * 5120 * 2 / 40e9
        hidden = step.attention / 16
        assert hop > hidden
        found = ring_seconds(work, step, degrees, H100, layers=40, local_world=8)
        assert found == pytest.approx(15 * (hop - hidden))

    def test_hidden_where_computing_takes_longer(self, large):
        degrees = Degrees(1, 8, 1)
        work, step = seconds(large, config(), degrees, N)
        assert ring_seconds(work, step, degrees, H100, layers=40, local_world=8) == 0
        assert ring_seconds(work, step, Degrees(1, 1, 8), H100, layers=40, local_world=8) == 0


class TestDecode:
    def test_flops(self):
        """By torch's counter, on shapes alone: 17 frames of 64 x 64, with the VAE's real width."""
        from diffusers import AutoencoderKLWan

        with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
            AutoencoderKLWan().decode(torch.zeros(1, 16, 5, 8, 8))
        estimate = DECODE_FLOPS * 96**2 * 17 * 64 * 64
        assert counter.get_total_flops() == pytest.approx(estimate, rel=0.03)

    def test_ranks(self, large):
        """The published 2.72 s on one B200 and 0.83 on 8, in 16 bits; 16 ranks gain nothing over 8."""
        settings, b200 = config(model__vae_dtype="bfloat16"), MACHINES["b200"]
        alone, eight, sixteen = (decode_seconds(large, settings, b200, world=n) for n in (1, 8, 16))
        assert alone == pytest.approx(2.72, rel=0.02)
        assert eight == pytest.approx(0.83, rel=0.02)
        assert sixteen == eight
        assert decode_seconds(large, config(), b200, world=1) == 2 * alone
        single = config(model__vae_parallel="single", model__vae_dtype="bfloat16")
        assert decode_seconds(large, single, b200, world=8) == alone


class TestMachines:
    def test_h100_is_calibrated_on_one_gpu(self, large):
        """The published 1837.9 s, 720p, 50 steps: the one figure that was used."""
        settings = config("full")
        (work,) = steps_of(large, settings, Degrees(1, 1, 1), active=0, moderate=0)
        step = step_seconds(large, settings, Degrees(1, 1, 1), work, H100, local_world=8)
        total = 50 * step.total + decode_seconds(large, settings, H100, world=1)
        assert total == pytest.approx(1837.9, rel=2e-3)

    def test_given_rates(self):
        own = machine_named("h100", gemm_tflops=600, attention_tflops=500, nvlink=100, infiniband=10)
        assert (own.gemm, own.attention) == (600e12, 500e12)
        assert (own.near.bandwidth, own.far.bandwidth) == (80e9, 8e9)
        assert own.near.latency == H100.near.latency
        assert "as given" in own.source
        assert machine_named("h100") == H100


BIG = ("plan", "--config", "wan2.1-14b-720p", "--gpus", "16", "--gpus-per-node", "8", "--gpu-memory", "80")


class TestPlan:
    def run(self, capsys, *options):
        code = cli.run([*BIG, *options])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return captured.out

    def test_says_predicted(self, capsys):
        words = " ".join(self.run(capsys, "--gpu", "a100").split())
        for part in ("Predicted, not measured", "a100: ", "Predicted seconds of a step", "assumed"):
            assert part in words

    def test_json(self, capsys, large):
        found = json.loads(self.run(capsys, "--json", "--active", "0.3"))
        settings, degrees = config(), Degrees(**found["mesh"])
        steps = steps_of(large, settings, degrees, active=0.3, moderate=0.2)
        total = 0.0
        for step, said in zip(steps, found["steps"], strict=True):
            wanted = step_seconds(large, settings, degrees, step, H100, local_world=8)
            assert said["predicted_seconds"]["total"] == pytest.approx(wanted.total)
            assert said["predicted_seconds"]["attention"] == pytest.approx(wanted.attention)
            total += step.steps * wanted.total
        run = found["generation"]["predicted_seconds"]
        assert run["denoise"] == pytest.approx(total)
        assert run["total"] == pytest.approx(total + run["decode"])
        assert run["full_denoise"] == pytest.approx(50 * found["steps"][0]["predicted_seconds"]["total"])
        assert found["machine"] == json.loads(json.dumps(asdict(H100)))
        assert token_count(large.geometry, settings) == found["steps"][0]["tokens"]

    def test_a_faster_link_shortens_what_is_sent(self, capsys):
        slow, fast = (
            json.loads(self.run(capsys, "--json", "--nvlink", rate))["steps"][0]["predicted_seconds"]
            for rate in ("45", "450")
        )
        assert slow["ulysses"] > 5 * fast["ulysses"]
        assert slow["products"] == fast["products"]

    @pytest.mark.parametrize("option", ["--gemm-tflops", "--attention-tflops", "--nvlink", "--infiniband"])
    @pytest.mark.parametrize("rate", ["0", "-1", "nan"])
    def test_a_rate_that_is_none(self, capsys, option, rate):
        code = cli.run([*BIG, option, rate])
        captured = capsys.readouterr()

        class Result:
            out, err = captured.out, captured.err

        Result.code = code
        assert_sentence(Result, f"{option} must be above 0", "give a rate")
