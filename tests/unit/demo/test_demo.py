"""Sentences, splits, voices and texts of the quickstart."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from kappaspeech.demo.sentences import make_sentences, split_by_sentence, words_of
from kappaspeech.demo.speech import generate_speech, split_recordings
from kappaspeech.demo.texts import write_texts
from kappaspeech.demo.voices import VOICES, Voice, speak
from kappaspeech.errors import DataError, InputError
from kappaspeech.speech.layouts import find_recordings
from tests import tiny
from tests.patience import patience


@pytest.mark.parametrize("language", ["en", "de"])
def test_sentences_are_distinct_and_a_function_of_the_seed(language):
    sentences = make_sentences(language, 300, seed=1)
    assert len(set(sentences)) == 300
    assert sentences == make_sentences(language, 300, seed=1)
    assert sentences != make_sentences(language, 300, seed=2)
    assert all(4 <= len(sentence.split()) <= 9 for sentence in sentences)


def test_generated_speech_never_tests_on_a_sentence_or_word_of_its_own(tmp_path):
    generate_speech(tmp_path, num_train=240, num_test=20, seed=3)
    for language in ("en", "de"):
        train, test = (
            [recording.transcript for recording in find_recordings(tmp_path / part / language)] for part in ("train", "test")
        )
        assert (len(train), len(test)) == (120, 10)
        assert not set(map(str.lower, train)) & set(map(str.lower, test))
        assert {word for text in test for word in words_of(text)} <= {word for text in train for word in words_of(text)}


def test_generated_speech_is_the_same_each_time_and_differs_by_voice(tmp_path):
    import soundfile

    generate_speech(tmp_path / "one", num_train=40, num_test=2, seed=3)
    # another process, in another second: espeak-ng would seed its noise with the time
    time.sleep(1.1)
    code = (
        "import sys; from pathlib import Path; from kappaspeech.demo.speech import generate_speech\n"
        "generate_speech(Path(sys.argv[1]), num_train=40, num_test=2, seed=3)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "other")], check=True, timeout=patience(120))
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.flac"))
    assert len(files) == 42
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes(), file
    waveform, rate_hz = soundfile.read(tmp_path / "one" / files[0])
    assert rate_hz == 16_000
    assert 0.5 < len(waveform) / rate_hz < 5
    assert abs(waveform).max() > 0.05


def test_a_clip_is_a_function_of_its_text_and_voice_whatever_was_said_before():
    first = [speak("Turn on the red lamp", voice) for voice in VOICES["en"]]
    again = [speak("Turn on the red lamp", voice) for voice in reversed(VOICES["en"])][::-1]
    for one, other in zip(first, again, strict=True):
        assert one.tobytes() == other.tobytes()
    assert len({waveform.tobytes() for waveform in first}) == len(first)


def test_a_voice_that_espeak_lacks_is_named():
    with pytest.raises(InputError, match="no voice 'xx-nowhere'"):
        speak("Turn on the red lamp", Voice("xx-nowhere", 160, 50))


def test_a_sentence_of_several_recordings_stays_on_one_side():
    items = [(f"{voice}-{number}.flac", f"sentence {number}") for voice in "abc" for number in range(30)]
    train, test = split_by_sentence(items, test_fraction=0.2, seed=0)
    assert sorted(train + test) == sorted(items)
    assert not {text for _, text in train} & {text for _, text in test}
    assert len(test) == pytest.approx(18, abs=6)


def test_real_recordings_are_divided_without_being_copied(tmp_path):
    source = tiny.make_recordings(tmp_path / "source", num_clips=20)
    split_recordings(source, tmp_path / "out", test_fraction=0.2, seed=0)
    divided = [recording for part in ("train", "test") for recording in find_recordings(tmp_path / "out" / part)]
    expected = find_recordings(source)
    assert sorted((r.language, r.transcript, r.path) for r in expected) == sorted(
        (r.language, r.transcript, r.path.resolve()) for r in divided
    )
    assert all(recording.path.is_symlink() for recording in divided)


def test_a_folder_without_transcripts_is_refused(tmp_path):
    with pytest.raises(DataError, match="transcripts"):
        split_recordings(tmp_path, tmp_path / "out", test_fraction=0.2, seed=0)


def test_the_prose_is_there_in_both_languages(tmp_path):
    english, german = (path.read_text(encoding="utf-8").splitlines() for path in write_texts(tmp_path))
    assert len(english) == len(german) == 40
    assert all(len(line.split()) > 20 for line in english + german)
    assert not set(english) & set(german)
