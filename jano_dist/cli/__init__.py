"""The command line, a short file per command. `main` is `jano-dist`."""

from jano_dist.cli.app import main, run

__all__ = ["main", "run"]
