"""Several runs side by side: whether they may be compared, a table, and plots."""
