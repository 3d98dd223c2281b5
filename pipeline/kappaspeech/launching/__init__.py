"""Starting a run's ranks on this host, on several hosts or under SLURM, and starting them again after a fault."""
