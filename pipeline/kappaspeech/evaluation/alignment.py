"""Edits between a reference and a hypothesis: jiwer's, or kaldialign's, which takes a compound written apart for one word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from kappaspeech.speech.normalisers import split_graphemes

# "kaldialign": words as the Open ASR Leaderboard counts them, so that "rind fleisch" is "rindfleisch", on either side
Aligner = Literal["jiwer", "kaldialign"]
ALIGNER_NAMES: dict[Aligner, str] = {"jiwer": "jiwer", "kaldialign": "kaldialign, compounds merged"}
_PRIVATE_SIGNS = 0xF0000


@dataclass(frozen=True)
class WerCount:
    """Edits between a reference and a hypothesis, in words, or in characters."""

    substitutions: int
    deletions: int
    insertions: int
    reference_length: int

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors over reference length, a fraction that can exceed 1; NaN without a reference."""
        return self.errors / self.reference_length if self.reference_length else float("nan")


def align_words(reference: str, hypothesis: str, aligner: Aligner = "jiwer") -> WerCount:
    """The word edits of normalised texts. `kaldialign` also lets adjacent words match one that is written as they are together;
    the reference's length stays the number of its words (pzelasko/kaldialign#29)."""
    if not reference:
        # jiwer refuses an empty reference; all that was written is inserted
        return WerCount(0, 0, len(hypothesis.split()), 0)
    if aligner == "kaldialign":
        from kaldialign import edit_distance

        found = edit_distance(reference.split(), hypothesis.split(), merge_compounds=True)
        return WerCount(found["sub"], found["del"], found["ins"], found["ref_len"])
    import jiwer

    return _of_jiwer(jiwer.process_words(reference, hypothesis))


def align_characters(reference: str, hypothesis: str) -> WerCount:
    """The character edits of normalised texts; spaces count, and a letter with its marks is one character."""
    import jiwer

    reference, hypothesis = _one_sign_each(reference, hypothesis)
    if not reference:
        return WerCount(0, 0, len(hypothesis), 0)
    return _of_jiwer(jiwer.process_characters(reference, hypothesis))


def _of_jiwer(done: Any) -> WerCount:
    return WerCount(done.substitutions, done.deletions, done.insertions, done.hits + done.substitutions + done.deletions)


def _one_sign_each(*texts: str) -> list[str]:
    """Texts in which every character that takes several code points is one sign that occurs in no text."""
    graphemes = [split_graphemes(text) for text in texts]
    signs: dict[str, str] = {}
    for grapheme in (item for text in graphemes for item in text):
        if len(grapheme) > 1:
            signs.setdefault(grapheme, chr(_PRIVATE_SIGNS + len(signs)))
    return ["".join(signs.get(item, item) for item in text) for text in graphemes]
