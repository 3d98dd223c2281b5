from __future__ import annotations

import pytest

from kappaspeech.config.data_config import HotWordsConfig
from kappaspeech.errors import DataError
from kappaspeech.speech.corpus import Corpus, SpeechDataset
from kappaspeech.speech.hot_words import HotWords, find_vocabulary, read_hot_words, read_vocabulary, split_words
from kappaspeech.speech.source import ReadOptions

ROOMS = [("en", f"the lamp is in room {number}") for number in range(9)]
TEXTS = [*ROOMS, ("en", "ask Dr. Müller's sister, now!"), ("de", "die Tür")]
VOCABULARY = find_vocabulary(TEXTS, max_text_share=0.2)
COUNTERS = [(7, step, 0, place) for step in range(40) for place in range(25)]


def hot(**options) -> HotWords:
    return HotWords(HotWordsConfig(**options), VOCABULARY)


def test_words_are_rare_by_the_share_of_their_languages_transcripts():
    assert VOCABULARY.common == {"en": {"the", "lamp", "is", "in", "room"}, "de": frozenset()}
    assert VOCABULARY.rare["en"] == tuple(sorted([*"012345678", "ask", "Dr", "Müller's", "sister", "now"]))
    assert VOCABULARY.rare["de"] == ("Tür", "die")
    # of two texts a fifth is none, and a word of one may be rare
    assert find_vocabulary([("en", "a b"), ("en", "A c")], max_text_share=0.2).rare["en"] == ("b", "c")


def test_a_share_of_clips_has_rare_words_of_its_own_among_distractors():
    chooser = hot(share=0.3, per_clip=2, distractors=4, only_distractors=0.25)
    text = "the lamp is in room 3 near Müller's Zoë"
    chosen = [chooser.choose(text, "en", counter) for counter in COUNTERS]
    given = [words for words in chosen if words]
    own = [[word for word in words if word in ("3", "near", "Müller's", "Zoë")] for words in given]
    assert len(given) / len(chosen) == pytest.approx(0.3, abs=0.05)
    assert sum(not words for words in own) / len(own) == pytest.approx(0.25, abs=0.08)
    # a word that no training transcript has is as rare as can be
    assert {word for words in own for word in words} == {"3", "near", "Müller's", "Zoë"}
    assert {len(words) for words in own} == {0, 1, 2}
    assert {len(words) - len(mine) for words, mine in zip(given, own, strict=True)} == {0, 1, 2, 3, 4}
    assert all(len(set(words)) == len(words) for words in given)
    assert not {word for words in given for word in words} & {"the", "lamp", "is", "in", "room"}
    # own words stand at any place
    assert {words.index(mine[0]) for words, mine in zip(given, own, strict=True) if mine and len(words) == 4} == {0, 1, 2, 3}


def test_no_distractor_is_said_and_none_comes_from_another_language():
    chooser = hot(share=1.0, per_clip=1, distractors=30, only_distractors=0.9)
    for counter in COUNTERS[:200]:
        words = chooser.choose("ASK now", "en", counter)
        assert "Tür" not in words
        assert sum(word.casefold() in ("ask", "now") for word in words) <= 1
    assert not any(hot(share=1.0).choose("ja", "fr", counter) for counter in COUNTERS[:50])


def test_a_list_gives_away_half_of_a_transcript_at_most():
    chooser = hot(share=1.0, per_clip=9, distractors=0, only_distractors=0.0)
    assert {len(chooser.choose("uno dos tres cuatro cinco", "en", counter)) for counter in COUNTERS[:60]} == {1, 2}
    # a sentence without spaces is one word
    assert not any(chooser.choose("今天天气很好", "zh", counter) for counter in COUNTERS[:20])


def test_the_words_are_a_function_of_the_clip_and_its_place_in_the_training():
    chooser = hot(share=1.0)
    text = "the lamp near Müller's sister"
    first = [chooser.choose(text, "en", counter) for counter in COUNTERS[:50]]
    assert first == [hot(share=1.0).choose(text, "en", counter) for counter in COUNTERS[:50]]
    assert len(set(first)) > 40
    assert hot(share=0.5).fingerprint != chooser.fingerprint


def test_known_answers():
    """Other words would make another training of a resumed run."""
    chooser = hot(share=1.0, per_clip=2, distractors=3, only_distractors=0.0)
    chosen = [chooser.choose("the lamp near Müller's sister", "en", (1, 2, 0, place)) for place in range(3)]
    assert chosen == [("near", "2"), ("Müller's", "sister"), ("Müller's", "sister")]


def test_words_are_split_without_the_punctuation_around_them():
    assert split_words("“Dr. O’Neil”, said: rock-'n'-roll … 3,5 %") == ["Dr", "O’Neil", "said", "rock-'n'-roll", "3,5"]


def test_the_vocabulary_is_read_from_the_shards_transcripts(home):
    corpora = [Corpus(SpeechDataset(str(home / "shards/train/*.tar")))]
    found = read_vocabulary(corpora, ReadOptions(), max_text_share=0.3)
    assert set(found.rare) == {"de", "en"}
    assert found.digest == read_vocabulary(corpora, ReadOptions(), max_text_share=0.3).digest
    both = {word.casefold() for word in found.rare["de"]} | found.common["de"]
    assert both == {"schalte", "die", "rote", "lampe", "ein", "öffne", "tür", "grüne", "küche", "garten"}
    # nothing is in one transcript alone if each is read twice
    with pytest.raises(DataError, match="no rare word"):
        read_vocabulary(corpora * 2, ReadOptions(), max_text_share=0.001)


def test_a_users_words_come_from_a_file_or_from_commas(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("New  York, NY\r\n\nÖrebro\nÖrebro\n", encoding="utf-8")
    assert read_hot_words(str(path)) == ("New York, NY", "Örebro")
    assert read_hot_words("New York, Örebro,,") == ("New York", "Örebro")
    assert read_hot_words(None) == ()
    with pytest.raises(DataError, match="no such file"):
        read_hot_words(str(tmp_path / "mistyped.txt"))
    path.write_text("\n")
    for given in (str(path), " , "):
        with pytest.raises(DataError, match="without a word"):
            read_hot_words(given)
    with pytest.raises(DataError, match="folder"):
        read_hot_words(str(tmp_path))
