"""The command line whose --nproc starts broken ranks (see broken.py), also on Ray. Run as a script."""

from functools import partial

from jano_dist import cli
from jano_dist.launchers import local, ray

BROKEN = ("tests.launch.broken", "main")

if __name__ == "__main__":
    local.LocalGang = partial(local.LocalGang, entry=BROKEN)
    ray.RayGang = partial(ray.RayGang, entry=BROKEN, forwarded=("BROKEN", "FAULTS", "PYTHONPATH"))
    cli.main()
