"""Compiled blocks: the same numbers, and no compilation per layer or per number of rows."""

from functools import partial

import pytest
import torch
import torch._dynamo
import torch._inductor.config
from torch._dynamo.utils import counters

from jano_dist import Engine, UserError, load_config
from jano_dist.models import loading
from jano_dist.models.compiling import check_compiler
from tests.parity import image_pipelines, video_pipelines
from tests.parity.image_pipelines import flux_pipeline, sd3_pipeline
from tests.parity.video_pipelines import i2v_pipeline
from tests.short_jano import SHORT_JANO

JANO = {**SHORT_JANO, "sampling.steps": 10, "sampling.guidance": 4.0}


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    """Counts compilations. What is traced runs as it is, so that a test takes seconds and no C++ compiler."""
    monkeypatch.setattr(loading, "check_compiler", lambda device: None)
    compiled = partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", compiled)
    torch._dynamo.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


def latents(overrides):
    return Engine(load_config("wan-tiny", policy="jano", overrides=JANO | overrides)).generate(
        "a box", seed=1
    )


def settings(folder, kind):
    if kind == "i2v":
        image = video_pipelines.picture(folder / "image.png", 0)
        own = {"video.frames": 5, "video.height": 32, "video.width": 48, "sampling.image": str(image)}
        own |= {"model.max_sequence_length": video_pipelines.TEXT_TOKENS, "policy.block": [1, 2, 2]}
        i2v_pipeline().save_pretrained(folder)
    else:
        own = {"video.frames": 1, "video.height": 32, "video.width": 24, "policy.block": [1, 4, 4]}
        own |= {"model.max_sequence_length": image_pipelines.TEXT_TOKENS}
        made = flux_pipeline() if kind == "flux" else sd3_pipeline(dual=(1,))
        made.save_pretrained(folder)
    return {"model.name": str(folder), **own}


@pytest.mark.parametrize(("kind", "cache"), [("i2v", "kv"), ("flux", "kv"), ("sd3", "hidden")])
def test_the_same_latents(tmp_path, kind, cache):
    own = settings(tmp_path, kind) | {"cache.kind": cache}
    plain, compiled = latents(own), latents(own | {"model.compile": True})
    assert {step["kind"] for step in plain.record["steps"]} >= {"full", "refresh", "active", "moderate"}
    assert (compiled.latents - plain.latents).abs().max() <= 1e-6


def test_no_compilation_per_layer_or_step(graphs):
    """wan-tiny's six blocks: per kind of step a graph for each piece between attention and caches."""
    small = {"video.frames": 5, "video.height": 64, "video.width": 64, "model.compile": True}
    first = latents(small)
    pieces, kinds = 4, len({step["kind"] for step in first.record["steps"]})
    assert 0 < graphs() <= pieces * kinds
    before = graphs()
    torch._dynamo.config.error_on_recompile, kept = True, torch._dynamo.config.error_on_recompile
    try:
        again = Engine(load_config("wan-tiny", policy="jano", overrides=JANO | small)).generate(
            "a box", seed=1
        )
    finally:
        torch._dynamo.config.error_on_recompile = kept
    assert graphs() == before
    assert torch.equal(again.latents, first.latents)


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no-such-compiler"))
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler, and there is none: install g\+\+, or"):
        check_compiler(torch.device("cpu"))


def test_refused_with_caches_inside_blocks():
    with pytest.raises(
        UserError, match=r"teacache decides inside the blocks, .*: set model.compile to false"
    ):
        load_config("wan-tiny", policy="teacache", overrides={"model.compile": True})
