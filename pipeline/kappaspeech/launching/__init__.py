"""The start of a run's ranks on this host, on several hosts or under SLURM, and the restarts after a fault."""
