"""Stage 1, the κ-scan: `open_checkpoint` → `scan` → `KappaRanking`; `spectrum_stats` for one matrix."""

from pipeline.scan.checkpoint import Checkpoint, open_checkpoint
from pipeline.scan.ranking import KappaRanking
from pipeline.scan.spectrum import SpectrumStats, spectrum_stats
from pipeline.scan.stage import scan

__all__ = ["Checkpoint", "KappaRanking", "SpectrumStats", "open_checkpoint", "scan", "spectrum_stats"]
