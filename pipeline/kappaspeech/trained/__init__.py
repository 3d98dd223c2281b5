"""The work after training: a run or its export opened for use, merged into its base, exported, and named for an evaluation."""
