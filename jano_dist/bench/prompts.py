"""Prompts of measurements. No torch."""

from pathlib import Path

from jano_dist.batch.plan import read_plan
from jano_dist.config import Config, change_config
from jano_dist.errors import UserError

# Within wan-tiny's vocabulary: every motion, six backgrounds, one and two objects.
PROMPTS = (
    "a red ball moves left over a navy striped background",
    "a yellow box moves right over a teal checked background",
    "a green triangle moves up over a maroon plain background",
    "a white diamond moves down over a olive dotted background",
    "a magenta ball stays still over a gray striped background",
    "a blue box moves left over a beige plain background",
    "a cyan ball moves right and a red box stays still over a gray plain background",
    "a yellow triangle moves down and a blue ball moves up over a maroon checked background",
)


def prompts_and_seeds(path: Path | None, config: Config) -> tuple[tuple[str, int], ...]:
    """What videos are made of: the lines of a prompts file as `jano-dist batch` reads it, or `PROMPTS`, the
    i-th with the config's seed + i.

    Raises:
        UserError: a line is wrong, or changes more than the seed.
    """
    if path is None:
        return tuple((prompt, config.sampling.seed + number) for number, prompt in enumerate(PROMPTS))
    plan, _ = read_plan(
        path,
        lambda changes: change_config(config.model_dump(mode="json"), changes, str(path)),
        skip_bad=False,
    )
    if len(plan.configs) > 1:
        raise UserError(
            f"{path}: all prompts of a measurement have the same settings: give prompts and seeds"
        )
    return tuple((job.prompt, job.seed) for job in plan.jobs)
