"""How processes work as one: the cluster and its kinds, where they meet, agreement, and the watch that all live."""
