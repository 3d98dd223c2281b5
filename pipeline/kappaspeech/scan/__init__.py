"""Stage 1, the κ-scan: `open_checkpoint` → `scan` → `KappaRanking`; `spectrum_stats` for one matrix."""
