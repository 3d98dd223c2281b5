"""Speech: recordings into indexed shards, and shards into an exact, resumable stream of batches."""
