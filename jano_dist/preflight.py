"""What can be refused on one process, before ranks are started: `jano-dist generate --check`."""

from jano_dist.account import check_fit
from jano_dist.account.fit import mesh_choice, mesh_for
from jano_dist.attention import kernel_for
from jano_dist.config import Config, of_second_expert
from jano_dist.errors import UserError
from jano_dist.models import check_model, read_geometry
from jano_dist.models.sizes import read_sizes
from jano_dist.policies import make_policy
from jano_dist.runtime import pick_device


def preflight(config: Config, *, world: int, local_world: int | None) -> str:
    """Look at the model's files, the schedule, the mesh and this machine's memory, and compute nothing.

    Args:
        world: ranks in all. local_world: those of this machine; None where it will run none of them.

    Returns:
        One line on the mesh that they would form.

    Raises:
        UserError: the sentence that a run would have ended with.
    """
    name, video = config.model.name, config.video
    geometry = read_geometry(name)
    geometry.check_image(config.sampling.image)
    geometry.check_experts(of_second_expert(config))
    latent = geometry.latent_shape(video.frames, video.height, video.width)
    try:
        make_policy(
            config.policy.model_dump(), steps=config.sampling.steps, latent=latent, patch=geometry.patch
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    sizes = read_sizes(name)
    degrees = mesh_for(sizes, config, world=world, local_world=local_world or world)
    check_model(name, config.model.loras, config.model.loras_2)
    if local_world is not None:
        device = pick_device(config.runtime)
        kernel_for(config, geometry, device, kv=degrees.kv)
        check_fit(config, degrees, device, local_world=local_world)
    return mesh_choice(sizes, config, degrees, local_world=local_world or world)
