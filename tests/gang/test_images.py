"""Joint models on several ranks: text is dealt like any bucket, whatever the mesh, cache and weights."""

import json
from pathlib import Path

import pytest
import torch

from jano_dist import Engine, load_config
from jano_dist.account.work import sent_bytes
from jano_dist.degrees import Degrees
from jano_dist.mesh import Mesh
from jano_dist.models.sizes import read_sizes
from jano_dist.tokens.plan import TokenPlan
from jano_dist.tokens.schedule import StepKind
from tests.gang.harness import gang
from tests.parity.image_pipelines import TEXT_TOKENS, flux_pipeline, sd3_pipeline
from tests.short_jano import SHORT_JANO

SETTINGS = {
    "model.max_sequence_length": TEXT_TOKENS,
    "video.frames": 1,
    "video.height": 32,
    "video.width": 24,
    "sampling.steps": 8,
    "sampling.guidance": 3.5,
    "policy.block": [1, 4, 4],
    **SHORT_JANO,
}
KINDS = ["full", "full", "full", "refresh", "active", "moderate", "active", "full"]
# World -> (cfg, kv, ulysses), cache, weights; six heads.
CASES = {
    2: [
        ((1, 1, 2), "kv", "replicated"),
        ((1, 2, 1), "hidden", "fsdp"),
        ((1, 2, 1), "kv in host memory", "group_offload"),
        ((2, 1, 1), "kv", "group_offload"),
    ],
    3: [((1, 1, 3), "hidden", "replicated"), ((1, 3, 1), "kv", "replicated")],
    4: [((1, 2, 2), "kv", "replicated"), ((2, 1, 2), "hidden", "replicated"), ((2, 2, 1), "kv", "fsdp")],
    5: [((1, 5, 1), "kv", "replicated")],
}


def config(folder, cache="kv", weights="replicated"):
    kind, *elsewhere = cache.split(" in ")
    own = {"model.name": str(folder), "cache.kind": kind, "model.weights": weights}
    if elsewhere:
        own["cache.device"] = "cpu"
    return load_config("wan-tiny", policy="jano", overrides=SETTINGS | own)


def made(folder, cases):
    """On every rank, for each case: the latent, and of each step kind, tokens, and bytes sent by rank 0."""
    results = []
    for degrees, cache, weights in cases:
        mesh = Mesh(**degrees._asdict())
        engine = Engine(config(folder, cache, weights), mesh=mesh)
        done = engine.generate("a red ball", seed=3)
        steps = [(step["kind"], step["tokens"], step["ranks"]) for step in done.record["steps"]]
        results.append((done.latents, json.loads(json.dumps(steps))))
    return results


MAKERS = {"flux": flux_pipeline, "sd3": sd3_pipeline, "sd3.5 medium": lambda: sd3_pipeline(dual=(0, 1))}


@pytest.fixture(scope="module", params=MAKERS)
def folder(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / request.param
    MAKERS[request.param]().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def alone(folder):
    return Engine(config(folder)).generate("a red ball", seed=3)


@pytest.mark.parametrize("world", CASES)
def test_meshes(folder, alone, world):
    sizes = read_sizes(str(folder))
    guided = sizes.geometry.branches(3.5) == 2
    cases = [(Degrees(*split), *rest) for split, *rest in CASES[world] if split[0] == 1 or guided]
    assert [step["kind"] for step in alone.record["steps"]] == KINDS
    for rank in gang(world, made, folder, cases):
        for (latents, steps), (degrees, cache, weights) in zip(rank, cases, strict=True):
            assert (latents - alone.latents).abs().max() <= 1e-4
            settings = config(folder, cache, weights)
            for step, (kind, tokens, ranks) in enumerate(steps):
                if kind == "full" and cache == "hidden":
                    continue  # without a cache keys and values are of the computed rows
                for index, own in enumerate(ranks["comm_bytes"]):
                    sent = sent_bytes(sizes, settings, degrees, tokens, rank=index)
                    first = index == 0
                    decision = 16 * first  # and, before the first step that uses it, the map and its digest
                    new_map = 32 + tokens * first if step == 3 else 0
                    assert own - (decision + new_map) * (world - 1) == sent.total, (kind, degrees, index)


def test_text_and_image_tokens_are_dealt_evenly(folder):
    text, tokens = read_sizes(str(folder)).geometry.joint_tokens(TEXT_TOKENS), 48
    levels = torch.randint(1, 4, (tokens,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plan = TokenPlan.from_levels(levels, text)
    for ranks in (1, 2, 3, 5):
        for kind, lowest in ((StepKind.ACTIVE, 3), (StepKind.MODERATE, 2), (StepKind.REFRESH, 1)):
            deal = plan.deal(kind, ranks)
            assert sorted(deal.text.tolist()) == list(range(text))
            assert sorted(deal.rows.tolist()) == (levels >= lowest).nonzero()[:, 0].tolist()
            assert max(deal.sequence_counts) - min(deal.sequence_counts) <= 1
