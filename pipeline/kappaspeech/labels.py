"""Labels of a batch that nothing is learned from."""

from __future__ import annotations

# transformers' and torch's own number for it
IGNORED_LABEL = -100
