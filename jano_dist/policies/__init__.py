"""Policies decide what each step computes. `make_policy` turns a name and settings into one."""

from collections.abc import Callable, Mapping
from typing import Any

from jano_dist.policies.astraea import AstraeaPolicy
from jano_dist.policies.base import Policy
from jano_dist.policies.blocks import BlockPolicy
from jano_dist.policies.experts import TwoExperts
from jano_dist.policies.forecast import ForecastPolicy
from jano_dist.policies.full import FullPolicy
from jano_dist.policies.hsa import HsaPolicy
from jano_dist.policies.jano import JanoPolicy
from jano_dist.policies.ras import RasPolicy
from jano_dist.policies.uniform import UniformPolicy
from jano_dist.reuse import METHODS
from jano_dist.tokens.grid import Shape3

__all__ = ["BlockPolicy", "Policy", "make_policy"]


def make_policy(
    settings: Mapping[str, Any], *, steps: int, latent: Shape3, patch: Shape3, switch: int | None = None
) -> Policy:
    """Build the policy `settings["name"]` for one generation.

    Args:
        settings: the policy's section of the config, as a mapping.
        steps: denoising steps.
        latent: (T, H, W) positions. patch: positions per token.
        switch: the first step of a second expert; None: there is no such step.

    Raises:
        ValueError: settings that do not fit the video or the number of steps.
        KeyError: an unknown name.
    """
    builders: dict[str, Callable[..., Policy]] = {
        "full": FullPolicy.build,
        "jano": JanoPolicy.build,
        "forecast": ForecastPolicy.build,
        "uniform": UniformPolicy.build,
        **{name: BlockPolicy.builder(name) for name in METHODS},
        "ras": RasPolicy.build,
        "hsa": HsaPolicy.build,
        "astraea": AstraeaPolicy.build,
    }
    if switch is not None and settings["name"] in METHODS:
        raise ValueError(
            f"policy {settings['name']} keeps caches inside the blocks, which are not passed on to a second "
            "expert: take another policy"
        )

    def make(own: Mapping[str, Any], *, steps: int) -> Policy:
        options = {key: value for key, value in own.items() if key not in ("name", "warmup_2")}
        return builders[own["name"]](steps=steps, latent=latent, patch=patch, **options)

    if switch is None:
        return make(settings, steps=steps)
    return TwoExperts.build(make, settings, steps=steps, switch=switch)
