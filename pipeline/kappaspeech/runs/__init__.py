"""The run folder as a format: what training writes, and all that scan, comparison, launching and commands read of a run."""
