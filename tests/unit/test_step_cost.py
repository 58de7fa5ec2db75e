"""One rank's share run alone does the work that the account counts; probes and simulation by hand."""

from dataclasses import replace

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from benchmarks import simulate
from benchmarks.probes import AloneMesh, as_loaded, forward_seconds, plan_of, rates
from benchmarks.step_cost import share_of
from jano_dist import load_config
from jano_dist.account.machines import MACHINES
from jano_dist.account.memory import token_count
from jano_dist.account.work import step_work
from jano_dist.degrees import Degrees
from jano_dist.geometry import WanGeometry
from jano_dist.models.sizes import read_sizes
from jano_dist.models.wan import WanTransformer
from jano_dist.tokens.schedule import StepKind

NARROW = WanGeometry(16, 16, (4, 8, 8), (1, 2, 2), 2, 4, 16, 96, 32, 16)
VIDEO = {"video.frames": 5, "video.height": 128, "video.width": 160}  # 160 tokens
TEXT = 8
KINDS = (StepKind.REFRESH, StepKind.MODERATE, StepKind.ACTIVE)
CPU_ATTENTION = {  # as in tests/gang/test_account.py
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
        q, k, v
    )
}


def narrow(dtype="float32"):
    overrides = {**VIDEO, "model.max_sequence_length": TEXT, "model.dtype": dtype}
    config = load_config("wan2.1-14b-720p", overrides={**overrides, "sampling.guidance": 1.0})
    sizes = replace(read_sizes(config.model.name, local=True), geometry=NARROW)
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_layers=2, num_attention_heads=4, attention_head_dim=16, ffn_dim=96, text_dim=32, freq_dim=16
    ).eval()
    return config, sizes, WanTransformer(as_loaded(model.to(getattr(torch, dtype))))


def test_weights_of_two_dtypes():
    """As loaded ones are: everything that is measured is in the one of the activations."""
    config, sizes, model = narrow("bfloat16")
    assert {each.dtype for each in model.module.parameters()} == {torch.bfloat16, torch.float32}
    rows = share_of(model, config, sizes, Degrees(1, 1, 1), 0.25, repeats=1)
    assert [row["kind"] for row in rows] == ["full", "refresh", "moderate", "active"]


@pytest.mark.parametrize("split", [(1, 1, 1), (1, 1, 2), (1, 1, 4), (1, 2, 1), (1, 2, 2), (1, 4, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_share_alone_does_the_counted_work(split, kind):
    """By torch's counter: a second forward of this kind costs what the account says a rank multiplies."""
    config, sizes, model = narrow()
    degrees = Degrees(*split)
    plan = plan_of(token_count(NARROW, config), 0.25, 0.25)  # 40, 80, 160 tokens: 4 ranks divide them
    counted = []
    for repeats in (1, 2):
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            forward_seconds(model, config, sizes, plan, AloneMesh(degrees), {kind: repeats})
        counted.append(counter.get_total_flops())
    work = step_work(sizes, config, degrees, kind, plan.count(kind))
    assert work.forwards == 1
    assert counted[1] - counted[0] == work.rank_flops


def test_uneven_shares_run():
    config, sizes, model = narrow()
    plan = plan_of(token_count(NARROW, config), 0.11, 0.2)
    for split in ((1, 1, 4), (1, 4, 1), (1, 2, 2), (1, 3, 2)):
        taken = forward_seconds(
            model, config, sizes, plan, AloneMesh(Degrees(*split)), dict.fromkeys(KINDS, 1)
        )
        assert min(taken.values()) > 0


def test_probe_multiplies_what_a_layer_does():
    """Products of one layer and its attention, as the account counts them; each twice: once to warm up."""
    config, sizes, _ = narrow()
    work = step_work(sizes, config, Degrees(1, 1, 2), StepKind.ACTIVE, 40)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        rates(NARROW, work, 160, 2, torch.float32, torch.device("cpu"), 1)
    one, two = (
        replace(NARROW, layers=layers).forward_flops(20, 160, 0) for layers in (1, 2)
    )  # without text: attention to 160 tokens
    assert counter.get_total_flops() == 2 * (two - one)


class TestSimulation:
    @pytest.fixture(scope="class")
    def runs(self):
        config = load_config("wan2.1-14b-720p", preset="balanced")
        return read_sizes(config.model.name, local=True), config

    @pytest.mark.parametrize("speedup", simulate.SPEEDUPS.values())
    def test_inferred_shares_give_the_published_speedup(self, runs, speedup):
        sizes, config = runs
        machine, alone = MACHINES["h100"], Degrees(1, 1, 1)
        share = simulate.inferred_share(sizes, config, machine, speedup)
        full = simulate.predict(sizes, simulate.as_full(config), alone, machine)
        gain = full.denoise / simulate.predict(sizes, config, alone, machine, share).denoise
        assert gain == pytest.approx(speedup, rel=1e-4)  # tokens are whole

    def test_retention_by_hand(self):
        """Steps scale perfectly, 2 seconds of decoding do not: 102 / 52 alone, 12 / 7 on ten."""
        one, ten = dict.fromkeys(simulate.WORDS, 0.0), dict.fromkeys(simulate.WORDS, 0.0)
        del one["decoding"], ten["decoding"]
        full, full_alone = (simulate.Run({**p, "products": s}, 2, {}) for p, s in ((ten, 10.0), (one, 100.0)))
        jano, jano_alone = (simulate.Run({**p, "products": s}, 2, {}) for p, s in ((ten, 5.0), (one, 50.0)))
        found = simulate.retention(full, jano, full_alone, jano_alone, 10)
        assert found["retention"] == pytest.approx((12 / 7) / (102 / 52))
        assert found["retention_of_steps"] == 1
        assert found["largest_loss"] == simulate.WORDS["decoding"]
        assert found["losses"][found["largest_loss"]] == pytest.approx(1 - found["retention"])

    @pytest.mark.parametrize(
        ("scheme", "world", "wanted"),
        [
            ("Ulysses alone", 8, (1, 1, 8)),
            ("Ulysses alone", 16, None),  # 40 heads
            ("Ulysses alone", 40, (1, 1, 40)),
            ("ring alone", 64, (1, 64, 1)),
            ("CFG x Ulysses", 16, (2, 1, 8)),
            ("CFG x Ulysses", 64, None),
            ("CFG x Ulysses x ring", 64, (2, 4, 8)),
            ("ours", 64, (2, 4, 8)),
        ],
    )
    def test_meshes(self, runs, scheme, world, wanted):
        assert simulate.SCHEMES[scheme].mesh(*runs, world) == wanted
