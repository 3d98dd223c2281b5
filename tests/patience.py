"""The time that tests wait for what will come unless something hangs."""

from __future__ import annotations

import os

# a machine so many times slower than the one that the bounds were set on still passes
_FACTOR = float(os.environ.get("TEST_PATIENCE", "3"))


def patience(seconds: float) -> float:
    """`seconds` of a quick machine as a bound on any machine. For what must come within a time by itself it is no bound."""
    return _FACTOR * seconds
