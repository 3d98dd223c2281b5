"""The choice of a corpus's splits to pack: held-out splits are not trained on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from kappaspeech.errors import DataError

_TRAIN = "train"
_HELD_OUT = {
    *("dev", "devel", "development", "eval", "evaluation", "held", "heldout", "holdout", "invalidated", "other"),
    *("test", "testing", "tst", "val", "valid", "validated", "validation"),
}


def is_split(name: str) -> bool:
    """Return whether a folder or table has the name of a split: `train-clean-100`, `dev`, `test_other`."""
    return _first_word(name) in {_TRAIN, *_HELD_OUT}


def choose_splits(source: Path, available: Sequence[str], wanted: str | None) -> list[str]:
    """Choose the `available` splits to read: the one that is `wanted` (train is also every train-…); else all but those that are
    held out, or if there are no others, all. Raises `DataError` if the one wanted isn't there.
    """
    if wanted is None:
        return [name for name in available if _first_word(name) not in _HELD_OUT] or list(available)
    chosen = [name for name in available if name == wanted] or [name for name in available if _first_word(name) == wanted]
    if not chosen:
        there = ", ".join(sorted(filter(None, available)))
        raise DataError(f"{source} has no split {wanted!r}{f'; it has {there}' if there else ', nor any other'}.")
    return chosen


def _first_word(name: str) -> str:
    """The word that says what a split is for: of `test2`, `test-other` and `Test.clean` it is test."""
    return re.split(r"[-_.\d]", name.lower())[0]
