"""Engines of other configs on the weights of one, on two ranks: the same bits as engines of their own."""

import torch

from jano_dist import Engine, load_config
from tests.gang.harness import gang

PROMPT = "a red ball moves left over a navy striped background"
CONFIGS = (
    {},
    {"sampling.steps": 8, "policy.name": "full"},  # on the same mesh
    {"sampling.guidance": 1.0},  # on another one: there is no second branch
    {"video.height": 96},
)


def configs(small):
    return [load_config(small, overrides=overrides) for overrides in CONFIGS]


def shared(small):
    first, *others = configs(small)
    engine = Engine(first)
    engine.prepare([PROMPT, ""])
    engines = [engine, *(engine.share(config) for config in others), engine]
    return [(each.generate(PROMPT).latents, each.mesh.degrees, each._files) for each in engines]


def alone(small):
    engines = map(Engine, configs(small))
    return [(each.generate(PROMPT).latents, each.mesh.degrees, each._files) for each in engines]


def test_the_same_as_alone(small):
    theirs = gang(2, alone, small)[0]
    for ours in gang(2, shared, small):
        assert [tuple(degrees) for _, degrees, _ in ours] == [(2, 1, 1)] * 2 + [(1, 1, 2)] + [(2, 1, 1)] * 2
        for (our, degrees, files), (their, wanted, digest) in zip(ours, [*theirs, theirs[0]], strict=True):
            assert torch.equal(our, their)
            assert (degrees, files) == (wanted, digest)
