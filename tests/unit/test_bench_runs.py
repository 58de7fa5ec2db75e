"""Cases and runs against plain engines."""

import math

import numpy as np
import pytest
import torch

from jano_dist import Engine, load_config
from jano_dist.bench.cases import Case, check_cases, default_cases, full_config, preset_case, read_cases
from jano_dist.bench.runs import Outcome, Runs
from jano_dist.bench.stand_ins import shuffled_blocks
from jano_dist.errors import UserError
from jano_dist.quality import psnr
from jano_dist.tokens.grid import TokenGrid

PROMPT = "a red ball moves left over a navy striped background"
FAST = {"policy.static_threshold": 0.4, "policy.moderate_threshold": 0.6}


@pytest.fixture(scope="module")
def config(small):
    return load_config(small)


@pytest.fixture(scope="module")
def runs(config, tmp_path_factory):
    return Runs(config, folder=tmp_path_factory.mktemp("full"), velocities=True)


class TestRuns:
    def test_a_case_is_what_plain_engines_make(self, runs, small):
        full = Engine(load_config(small, policy="full")).generate(PROMPT, seed=3)
        fast = Engine(load_config(small, preset="fast")).generate(PROMPT, seed=3)
        outcome = runs.measure(Case("fast", FAST), PROMPT, 3)
        assert outcome.psnr == psnr(full.frames, fast.frames) < math.inf
        assert outcome.work == fast.record["flops"]["done"] / full.record["flops"]["done"] < 1
        assert outcome.levels == fast.record["levels"]
        assert outcome.kinds == [step["kind"] for step in fast.record["steps"]]
        assert outcome.tokens == [step["tokens"] / 32 for step in fast.record["steps"]]
        assert (outcome.case, outcome.prompt, outcome.seed) == ("fast", PROMPT, 3)
        seconds, whole = outcome.seconds, outcome.full_seconds
        assert outcome.speedup == {name: whole[name] / seconds[name] for name in ("denoise", "whole")}

    def test_velocities_lead_to_the_same_latent(self, runs, small):
        """Stepped by a scheduler of its own, they end where the full run ends."""
        engine = Engine(load_config(small, policy="full"))
        latents = engine.generate(PROMPT, seed=3).latents
        velocities = runs.full(PROMPT, 3).velocities
        scheduler = engine.model.scheduler(12, None, engine.latent_shape)
        latent = engine.model.noise(engine.latent_shape, 3)[None]
        for velocity, timestep in zip(velocities, scheduler.timesteps, strict=True):
            latent = scheduler.step(velocity[None], timestep, latent, return_dict=False)[0]
        assert torch.equal(latent[0], latents)

    def test_a_later_process_finds_the_full_run(self, runs, config):
        first = runs.full(PROMPT, 3)
        later = Runs(config, folder=runs._folder, velocities=True, model=runs.base.model)
        found = later.full(PROMPT, 3)
        assert np.array_equal(found.frames, first.frames)
        assert torch.equal(found.velocities, first.velocities)
        assert (found.seconds, found.flops, found.session) == (first.seconds, first.flops, first.session)
        outcome = later.measure(Case("fast", FAST), PROMPT, 3)
        assert outcome.speedup is None  # seconds of two processes are not compared
        assert outcome.psnr == runs.measure(Case("fast", FAST), PROMPT, 3).psnr
        later.forget(PROMPT, 3)
        assert not list(runs._folder.glob("*.npz"))

    def test_another_dtype_is_another_model(self, runs):
        outcome = runs.measure(Case("floor", {"policy.name": "full", "model.dtype": "bfloat16"}), PROMPT, 3)
        assert 15 < outcome.psnr < math.inf
        assert outcome.work == 1

    def test_json_and_back(self, runs):
        outcome = runs.measure(Case("same", {"policy.name": "full", "snapshot.seconds": 5}), PROMPT, 3)
        assert outcome.psnr == math.inf
        assert outcome.to_json()["quality"]["psnr"] == "identical"
        assert Outcome.from_json(outcome.to_json()) == outcome


class TestShuffledBlocks:
    @pytest.mark.parametrize("block", [(1, 4, 4), (2, 4, 6), (3, 6, 4)])
    def test_blocks_stay_whole_and_shares_exact(self, block):
        grid = TokenGrid((5, 12, 16), (1, 2, 2), block)
        t, h, w = grid.shape
        cuts = zip((t, h, w), (1, 2, 2), block, strict=True)
        where = [torch.arange(size) * patch // edge for size, patch, edge in cuts]
        number = (where[0][:, None, None] * 100 + where[1][:, None] * 10 + where[2]).flatten()
        dealt = shuffled_blocks(grid)(number)
        assert not torch.equal(dealt, number)
        assert torch.equal(dealt.sort().values, number.sort().values)
        for each in number.unique():
            assert len(dealt[number == each].unique()) == 1


class TestCases:
    def test_another_policy_brings_its_own_settings(self, config):
        assert Case("x", {"policy.name": "full"}).config(config) == full_config(config)
        assert Case("x", FAST).config(config).policy.block == (1, 4, 4)

    def test_a_preset_is_its_row(self, config, small):
        fast = load_config(small, preset="fast")
        case = preset_case("fast", config, fast)
        assert case.changes == {"policy.name": "jano", **FAST}
        assert case.config(config).policy == fast.policy
        assert preset_case("fast", full_config(config), fast).config(config).policy == fast.policy

    @pytest.mark.parametrize(("work", "steps"), [(0.5, 6), (0.04, 1), (1.0, 11)])
    def test_fewer_steps_for_the_same_work(self, config, work, steps):
        matched = Case("f", {}, like="x").matched(config, work).config(config)
        assert matched.sampling.steps == steps
        assert matched.policy.name == "full"

    def test_the_default_ones_can_be_compared(self, config, small):
        presets = [
            preset_case(name, config, load_config(small, preset=name)) for name in ("balanced", "fast")
        ]
        cases = default_cases(
            presets, floors=[Case("floor", {"policy.name": "full", "model.dtype": "bfloat16"})]
        )
        check_cases(cases, config)
        names = [case.name for case in cases]
        assert {"fast", "fast, random map", "fewer steps, as fast", "floor"} <= set(names)
        only = default_cases(presets, policies=["jano"])
        assert {case.changes.get("policy.name", "like") for case in only} == {"jano", "like"}
        with pytest.raises(UserError, match="no case has the policy 'janno'"):
            default_cases(presets, policies=["janno"])

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "holds no case"),
            ("a: 3", "'a' should be config keys"),
            ("a: {rearrange: upside}", "only random"),
            ("a: [", "not valid YAML"),
            ("a: {policy.nam: jano}", "policy.nam"),
            ("a: {policy.name: full}", "is the full run itself"),
            ("full: {sampling.steps: 3}", "two cases are named 'full'"),
            ("a: {video.frames: 9}", "of another video"),
            ("a: {like: b}", "no earlier case"),
            ("a: {sampling.steps: 3, like: full}", "no earlier case"),
            ("a: {sampling.steps: 3, policy.name: full}\nb: {like: a, sampling.steps: 3}", "leave these"),
            ("a: {policy.name: full, sampling.steps: 3, rearrange: random}", "no complexity map"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_compared(self, config, tmp_path, text, words):
        path = tmp_path / "cases.yaml"
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            check_cases(read_cases(path), config)

    def test_from_a_file(self, tmp_path):
        path = tmp_path / "cases.yaml"
        path.write_text("a: {policy.block: [1, 2, 2], rearrange: random}\nb: {like: a}")
        first = Case("a", {"policy.block": [1, 2, 2]}, rearrange="random")
        assert read_cases(path) == [first, Case("b", {}, like="a")]
