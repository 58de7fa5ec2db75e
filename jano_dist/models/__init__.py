"""Models behind one protocol. `read_geometry` and `load_model` turn a name or folder into one."""

from jano_dist.models.base import Branch, Geometry, VideoModel
from jano_dist.models.wan_pipeline import load_wan as load_model
from jano_dist.models.wan_pipeline import read_wan_geometry as read_geometry

__all__ = ["Branch", "Geometry", "VideoModel", "load_model", "read_geometry"]
