"""jano_dist: region-adaptive inference of video diffusion transformers, on one to many GPUs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jano_dist.config import Config, load_config
    from jano_dist.engine import Engine, Generation
    from jano_dist.errors import RunError, UserError
    from jano_dist.runtime import join

__all__ = ["Config", "Engine", "Generation", "RunError", "UserError", "join", "load_config"]

_HOMES = {
    "Config": "config",
    "Engine": "engine",
    "Generation": "engine",
    "RunError": "errors",
    "UserError": "errors",
    "join": "runtime",
    "load_config": "config",
}


def __getattr__(name: str) -> Any:
    """Import a name's module when it is first asked for: torch and diffusers take seconds, a typo should
    not; and nothing is imported before the command line can answer Ctrl-C."""
    if name not in _HOMES:
        raise AttributeError(f"module 'jano_dist' has no attribute {name!r}")
    return getattr(import_module(f"jano_dist.{_HOMES[name]}"), name)
