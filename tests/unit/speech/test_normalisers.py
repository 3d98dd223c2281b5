"""Words stay whole in every script, and the letters that Whisper's normaliser takes apart stay letters."""

from __future__ import annotations

import unicodedata

import pytest

from kappaspeech.speech.normalisers import normalise_text, normaliser_of, split_graphemes

WHOLE = [
    ("hi", "हिन्दी में बोलो!", "हिन्दी में बोलो"),
    ("bn", "বাংলা ভাষা।", "বাংলা ভাষা"),
    ("ta", "தமிழ், மொழி", "தமிழ் மொழி"),
    ("th", "น้ำมีสีฟ้า", "น้ำมีสีฟ้า"),
    ("lo", "ນ້ຳ", "ນ້ຳ"),
    ("my", "မြန်မာ", "မြန်မာ"),
    ("km", "ភាសាខ្មែរ", "ភាសាខ្មែរ"),
    ("ar", "مَرْحَبًا بِالعَالَمِ", "مَرْحَبًا بِالعَالَمِ"),
    ("he", "שָׁלוֹם עולם", "שָׁלוֹם עולם"),
    ("tr", "İSTANBUL'da hava IŞIKLI", "istanbul da hava ışıklı"),
    ("az", "İKİ IRAQ", "iki ıraq"),
    ("yo", "Ẹ́ kú àárọ̀", "ẹ́ kú àárọ̀"),
    ("xx", "g̃uarani [noise] (x) A", "g̃uarani a"),
]


@pytest.mark.parametrize(("language", "text", "expected"), WHOLE, ids=[row[0] for row in WHOLE])
def test_words_stay_whole_in_every_script(language, text, expected):
    written = normalise_text(text, language, "whisper")
    assert unicodedata.normalize("NFC", written) == unicodedata.normalize("NFC", expected)
    assert len(written.split()) == len(expected.split())
    assert normalise_text(written, language, "whisper") == written


def test_a_language_has_its_normaliser_by_any_of_its_names():
    assert {normaliser_of(name) for name in ("en", "eng", "English", "en_GB")} == {"whisper-english"}
    assert {normaliser_of(name) for name in ("tr", "tur", "turkish")} == {"marks-kept-dotted-i"}
    assert normaliser_of("") == "whisper-basic"


def test_thai_and_lao_vowels_are_not_taken_apart():
    assert "\u0e33" in normalise_text("น้ำ", "th", "whisper")
    assert "\u0eb3" in normalise_text("ນ້ຳ", "lo", "whisper")


def test_where_nothing_is_lost_it_is_whispers_own():
    from whisper.normalizers import BasicTextNormalizer

    upstream = BasicTextNormalizer()
    texts = {"de": "Größe, Straße!", "fr": "L'été (bis) À", "ru": "Ёлка – Йод", "vi": "Tiếng Việt", "ja": "がぎ、ぐ"}
    for language, text in texts.items():
        assert normaliser_of(language) == "whisper-basic"
        assert normalise_text(text, language, "whisper") == upstream(text).strip()
    assert normalise_text("हिन्दी", "", "whisper") == upstream("हिन्दी").strip() != "हिन्दी"


def test_a_letter_and_its_marks_are_one_character():
    assert split_graphemes("हिन्दी") == ["हि", "न्", "दी"]
    assert split_graphemes("ẹ́ a") == ["ẹ́", " ", "a"]
    assert split_graphemes("\u0301a") == ["\u0301", "a"]
    assert split_graphemes("") == []
