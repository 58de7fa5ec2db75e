"""The command line whose --nproc starts broken ranks (see broken.py). Run as a script."""

import sys
from functools import partial
from pathlib import Path

from jano_dist import cli
from jano_dist.launchers import local

if __name__ == "__main__":
    local.launch = partial(local.launch, command=(sys.executable, str(Path(__file__).with_name("broken.py"))))
    cli.main()
