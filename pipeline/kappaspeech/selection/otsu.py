"""The split of a list of scores in two."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kappaspeech.errors import SelectionError


def otsu_threshold(scores: Sequence[float]) -> float:
    """The score that best splits `scores` in two: greatest between-class variance of log score (Otsu 1979), exact.

    It lies half-way (in log) between the two classes. Scores that are infinite or not positive take no part. Raises
    `SelectionError` with fewer than two distinct ones.
    """
    logs = sorted(math.log(score) for score in scores if 0 < score < math.inf)
    if len(set(logs)) < 2:
        raise SelectionError("The automatic threshold needs two different finite scores. Give a number or a count.")
    total, below = math.fsum(logs), 0.0
    best, place = -1.0, 0.0
    for index in range(1, len(logs)):
        below += logs[index - 1]
        gap = below / index - (total - below) / (len(logs) - index)
        variance = index * (len(logs) - index) * gap * gap
        if logs[index] > logs[index - 1] and variance > best:
            best, place = variance, (logs[index] + logs[index - 1]) / 2
    return math.exp(place)
