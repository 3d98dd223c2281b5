"""Processes that work as one: the cluster and its kinds, the place where they meet, agreement, and the watch over each other."""
