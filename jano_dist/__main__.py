"""`python -m jano_dist` is the `jano-dist` command."""

from jano_dist.cli import main

main()
