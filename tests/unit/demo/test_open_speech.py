"""Any text, spoken by many voices."""

from __future__ import annotations

import itertools

import pytest

from kappaspeech.demo.flite import FliteVoice, has_flite, speak_by_flite
from kappaspeech.demo.open_speech import draw_voices, read_sentences, speak_texts
from kappaspeech.demo.sentences import words_of
from kappaspeech.errors import DataError, InputError
from kappaspeech.speech.layouts import find_recordings

SUBJECTS = ("The baker", "My neighbour", "An old sailor", "Nobody", "The whole village")
VERBS = ("remembers", "forgets", "paints", "sells", "buries")
OBJECTS = ("a golden clock", "the winter of that year", "two letters from Vienna")


def write_texts(folder, language="en"):
    folder.mkdir(parents=True, exist_ok=True)
    prose = " ".join(" ".join(words) + "." for words in itertools.product(SUBJECTS, VERBS, OBJECTS))
    (folder / f"{language}.txt").write_text(prose + "\n", encoding="utf-8")
    return folder


def test_sentences_are_read_off_prose_once_each_and_only_where_letters_tell_their_sound(tmp_path):
    path = tmp_path / "en.txt"
    path.write_text(
        "“Come back at once!” She said it twice. Come back at once.\nIt cost 5 dollars today. No.\nThe rest isn't (quite) lost\n",
        encoding="utf-8",
    )
    assert read_sentences(path) == ["Come back at once!", "She said it twice.", "The rest isn't quite lost"]


def test_a_mark_at_the_start_is_no_letter_of_the_first_sentence(tmp_path):
    (tmp_path / "en.txt").write_text("\ufeffCome back at once.\n", encoding="utf-8")
    assert read_sentences(tmp_path / "en.txt") == ["Come back at once."]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"\xff\xfeS\x00", DataError, "isn't UTF-8"),
        (b"Too short. 1 2 3 4 5.\n", InputError, "no sentence of 3 to 20 words"),
    ],
)
def test_a_text_without_sentences_is_named(tmp_path, content, error, message):
    path = tmp_path / "en.txt"
    path.write_bytes(content)
    with pytest.raises(error, match=message):
        read_sentences(path)


def test_voices_differ_and_are_a_function_of_the_seed():
    one, again, other = (list(itertools.islice(draw_voices("en", seed=seed), 40)) for seed in ("a", "a", "b"))
    assert one == again != other
    assert len(set(one)) > 30
    assert any(isinstance(voice, FliteVoice) for voice in one) == has_flite()
    assert {voice.name.partition("+")[0] for voice in itertools.islice(draw_voices("fr", seed="a"), 5)} == {"fr"}


def test_texts_are_spoken_until_the_time_is_filled_and_test_sentences_are_in_training_in_no_voice(tmp_path):
    texts = write_texts(tmp_path / "texts")
    spoken = speak_texts(texts, tmp_path / "out", hours=130 / 3600, num_test=40, seed=1)
    train, test = (
        [recording.transcript for recording in find_recordings(tmp_path / "out" / part / "en")] for part in ("train", "test")
    )
    said = {" ".join(words_of(text)) for text in train}
    # 35 sentences take less than that, so they are spoken again
    assert len(test) == 40
    assert len(said) == 35 < len(train)
    assert not said & {" ".join(words_of(text)) for text in test}
    assert [item.num_clips for item in spoken] == [len(train), len(test)]
    assert 130 <= spoken[0].seconds < 140
    assert len(list((tmp_path / "out/train/en").glob("*.flac"))) == len(train)


def test_an_interrupted_folder_goes_on_with_the_clips_of_the_same_text_and_voice(tmp_path):
    texts = write_texts(tmp_path / "texts")
    speak_texts(texts, tmp_path / "out", hours=12 / 3600, num_test=2, seed=1)
    train = tmp_path / "out/train/en"
    transcripts, files = (train / "transcripts.tsv").read_bytes(), sorted(train.glob("*.flac"))
    kept = {file.name: file.read_bytes() for file in files}
    times = {file.name: file.stat().st_mtime_ns for file in files[1:]}
    (train / "transcripts.tsv").unlink()
    files[0].unlink()
    speak_texts(texts, tmp_path / "out", hours=12 / 3600, num_test=2, seed=1)
    assert (train / "transcripts.tsv").read_bytes() == transcripts
    assert {file.name: file.read_bytes() for file in train.glob("*.flac")} == kept
    assert {name: (train / name).stat().st_mtime_ns for name in times} == times
    (train / "transcripts.tsv").unlink()
    speak_texts(texts, tmp_path / "out", hours=12 / 3600, num_test=2, seed=2)
    named = [line.split("\t")[0] for line in (train / "transcripts.tsv").read_text(encoding="utf-8").splitlines()]
    assert not set(named) & set(kept)


def test_more_test_sentences_than_there_are_and_a_folder_without_texts_are_refused(tmp_path):
    with pytest.raises(InputError, match="75 sentences, and 80"):
        speak_texts(write_texts(tmp_path / "texts"), tmp_path / "out", hours=0.01, num_test=80, seed=1)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"no file LANGUAGE\.txt"):
        speak_texts(tmp_path / "none", tmp_path / "out", hours=0.01, num_test=8, seed=1)


@pytest.mark.skipif(not has_flite(), reason="the command flite isn't installed")
def test_flite_speaks_as_long_as_it_is_stretched():
    usual, slow = (speak_by_flite("She said it twice.", FliteVoice("slt", stretch), 16_000) for stretch in (1.0, 1.5))
    assert 0.5 < len(usual) / 16_000 < 4
    assert len(slow) / len(usual) == pytest.approx(1.5, rel=0.15)
    assert abs(usual).max() > 0.05
    with pytest.raises(InputError, match="flite"):
        speak_by_flite("", FliteVoice("slt", 1.0), 16_000)
