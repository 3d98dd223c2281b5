"""After training: a run or its export opened for use, merged into its base, written for others, and named for an evaluation."""
