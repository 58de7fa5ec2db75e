"""Models behind one protocol. `read_geometry` and `load_model` turn a name or folder into one."""

from jano_dist.models.base import Branch, Geometry, VideoModel
from jano_dist.models.wan_pipeline import check_wan as check_model
from jano_dist.models.wan_pipeline import load_wan as load_model
from jano_dist.models.wan_pipeline import model_folder
from jano_dist.models.wan_pipeline import read_wan_geometry as read_geometry
from jano_dist.models.weights import folder_digest

__all__ = [
    "Branch",
    "Geometry",
    "VideoModel",
    "check_model",
    "load_model",
    "model_digest",
    "read_geometry",
]


def model_digest(name: str) -> bytes:
    """32 bytes that tell the files of two models apart; see `folder_digest`.

    Raises:
        UserError: the model is neither here nor can it be fetched.
    """
    return folder_digest(model_folder(name))
