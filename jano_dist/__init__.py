"""jano_dist: region-adaptive inference of video diffusion transformers, on one to many GPUs."""

from typing import TYPE_CHECKING, Any

from jano_dist.config import Config, load_config
from jano_dist.errors import RunError, UserError

if TYPE_CHECKING:
    from jano_dist.engine import Engine, Generation
    from jano_dist.runtime import join

__all__ = ["Config", "Engine", "Generation", "RunError", "UserError", "join", "load_config"]


def __getattr__(name: str) -> Any:
    """Import the engine when it is first asked for: torch and diffusers take seconds, a typo should not."""
    if name in ("Engine", "Generation"):
        from jano_dist import engine

        return getattr(engine, name)
    if name == "join":
        from jano_dist.runtime import join

        return join
    raise AttributeError(f"module 'jano_dist' has no attribute {name!r}")
