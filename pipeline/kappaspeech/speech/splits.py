"""The choice of a corpus's splits to pack: held-out splits are not trained on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from kappaspeech.errors import DataError

_TRAIN = "train"
_HELD_OUT = ("dev", "test", "valid", "validation", "validated", "eval", "other", "invalidated")


def is_split(name: str) -> bool:
    """Return whether a folder or table has the name of a split: `train-clean-100`, `dev`, `test_other`."""
    return _first_word(name) in (_TRAIN, *_HELD_OUT)


def choose_splits(source: Path, available: Sequence[str], wanted: str | None) -> list[str]:
    """Choose the `available` splits to read: the one that is `wanted` (train is also every train-…); else, if one is for
    training, all but those that are held out; else all. Raises `DataError` if the one wanted isn't there.
    """
    if wanted is None:
        trains = any(_first_word(name) == _TRAIN for name in available)
        return [name for name in available if not trains or _first_word(name) not in _HELD_OUT]
    chosen = [name for name in available if name == wanted] or [name for name in available if _first_word(name) == wanted]
    if not chosen:
        there = ", ".join(sorted(filter(None, available)))
        raise DataError(f"{source} has no split {wanted!r}{f'; it has {there}' if there else ', nor any other'}.")
    return chosen


def _first_word(name: str) -> str:
    return re.split(r"[-_.]", name.lower())[0]
