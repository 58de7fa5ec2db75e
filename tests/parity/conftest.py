"""wan-tiny twice: as diffusers runs it, and as the engine does."""

import pytest
import torch

from jano_dist import Engine, load_config
from tests.parity.diffusers_pipeline import wan_tiny_pipeline

SMALL = {"video.frames": 9, "video.height": 96, "video.width": 64, "sampling.steps": 10}
JANO = {"policy.warmup": 4, "policy.cooldown": 1, "policy.block": [1, 2, 2]}


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pipeline():
    """diffusers' own pipeline."""
    return wan_tiny_pipeline()


@pytest.fixture(scope="session")
def model():
    """The same weights behind our adapter."""
    return Engine(load_config("wan-tiny", policy="full")).model


@pytest.fixture
def engine(model):
    """`engine(policy, **overrides)`: an engine on the shared weights, small by default."""

    def make(policy, overrides=None):
        settings = {**SMALL, **(JANO if policy == "jano" else {}), **(overrides or {})}
        return Engine(load_config("wan-tiny", policy=policy, overrides=settings), model=model)

    return make
