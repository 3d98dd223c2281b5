"""Stage 1, the κ-scan: `open_checkpoint` → `scan` → `KappaRanking`; `spectrum_stats` for one matrix."""

from kappaspeech.scan.checkpoint import Checkpoint, open_checkpoint
from kappaspeech.scan.ranking import KappaRanking
from kappaspeech.scan.spectrum import SpectrumStats, spectrum_stats
from kappaspeech.scan.stage import scan

__all__ = ["Checkpoint", "KappaRanking", "SpectrumStats", "open_checkpoint", "scan", "spectrum_stats"]
