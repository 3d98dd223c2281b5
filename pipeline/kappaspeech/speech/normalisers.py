"""Normalisers, which write transcripts by the conventions of their language so that they can be compared."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Any, Literal

from kappaspeech.speech.languages import short_language

TextNormalization = Literal["none", "whisper"]

# Whisper's basic normaliser puts a space in place of every mark that has no letter of its own with it. In these languages there
# is none; elsewhere it takes words apart ("हिन्दी", "มี", "مَرْحَبًا"), so that their marks are kept.
_WITHOUT_MARKS = frozenset(
    re.findall(
        "[a-z]+",
        "af be bg br bs ca cs cy da de el eo es et eu fi fo fr fy ga gl ha hr ht hu hy id is it ja jv jw ka kk ko la "
        "lb lv mg mi mk ms mt nl nn no oc pl pt ro ru sk sl sn so sq su sv sw tl uk uz vi yue zh ",
    )
)
# İ and I are two letters, i and ı the small ones.
_DOTTED_I = frozenset(("az", "crh", "tr"))
_BRACKETS = re.compile(r"[<\[][^>\]]*[>\]]")
_PARENTHESES = re.compile(r"\(([^)]+?)\)")
# NFKC takes these vowels of Thai and Lao apart, which nobody writes so.
_TAKEN_APART = {"\u0e4d\u0e32": "\u0e33", "\u0ecd\u0eb2": "\u0eb3"}
_JOINER = "\u200d"


def normaliser_of(language: str) -> str:
    """The name of the normaliser that a language's transcripts are written by; of none in particular, Whisper's basic one."""
    # an index of another tool's may have names for codes
    language = short_language(language)
    if language == "en":
        return "whisper-english"
    if not language:
        return "whisper-basic"
    if language in _DOTTED_I:
        return "marks-kept-dotted-i"
    return "whisper-basic" if language in _WITHOUT_MARKS else "marks-kept"


def normalise_text(text: str, language: str, normalization: TextNormalization) -> str:
    """The transcript as it is, or as the normaliser of its language writes it: Whisper's own if it leaves words whole."""
    if normalization == "none":
        return text
    name = normaliser_of(language)
    if name.startswith("whisper"):
        return str(_whisper_normaliser(name == "whisper-english")(text)).strip()
    return _keep_marks(text, dotted_i=name == "marks-kept-dotted-i")


def _keep_marks(text: str, *, dotted_i: bool) -> str:
    """Normalise as Whisper's basic normaliser does, but keep combining marks, and lower-case the Turkish i correctly."""
    if dotted_i:
        text = unicodedata.normalize("NFC", text).replace("İ", "i").replace("I", "ı")
    text = _PARENTHESES.sub("", _BRACKETS.sub("", text.lower()))
    text = "".join(" " if unicodedata.category(c)[0] in "SP" else c for c in unicodedata.normalize("NFKC", text))
    for apart, whole in _TAKEN_APART.items():
        text = text.replace(apart, whole)
    return " ".join(text.lower().split())


@lru_cache(maxsize=2)
def _whisper_normaliser(is_english: bool) -> Any:
    from whisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer

    return EnglishTextNormalizer() if is_english else BasicTextNormalizer()


def split_graphemes(text: str) -> list[str]:
    """Split a text into graphemes: letters with their combining marks, or letters that a joiner ties together."""
    graphemes: list[str] = []
    for character in text:
        is_tied = unicodedata.category(character)[0] == "M" or character == _JOINER
        if graphemes and (is_tied or graphemes[-1][-1] == _JOINER) and not graphemes[-1].isspace():
            graphemes[-1] += character
        else:
            graphemes.append(character)
    return graphemes
