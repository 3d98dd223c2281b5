"""The run folder as a format: the files that training writes, and that scan, comparison, launching and commands read of a run."""
