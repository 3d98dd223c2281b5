"""κ-selected fine-tuning of speech LLMs: the κ-scan, the ZeRO-3 training and the measures of both (arXiv:2506.16289)."""

__version__ = "0.1.0"
