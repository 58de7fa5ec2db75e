"""The command line whose --nproc starts broken ranks (see broken.py). Run as a script."""

from functools import partial

from jano_dist import cli
from jano_dist.launchers import local

if __name__ == "__main__":
    local.LocalGang = partial(local.LocalGang, entry=("tests.launch.broken", "main"))
    cli.main()
