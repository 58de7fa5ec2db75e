"""One thin file per way to start the ranks of a gang. Packaged as `jano_dist.launchers`."""
