"""`python -m jano_dist` is the `jano-dist` command."""

from jano_dist.cli import main

if __name__ == "__main__":
    main()
