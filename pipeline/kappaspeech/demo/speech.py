"""Folders of recordings with transcripts, split into train and test: generated, or made from real ones.

A folder a language, each with `transcripts.tsv` (file, tab, text), under `train/` and `test/`.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kappaspeech.artefacts import write_text
from kappaspeech.demo.sentences import make_sentences, split_by_sentence, words_of
from kappaspeech.demo.voices import SAMPLE_RATE_HZ, VOICES, speak, start
from kappaspeech.parenthood import end_with_parent
from kappaspeech.processors import count_cores
from kappaspeech.speech.layouts import find_recordings
from kappaspeech.speech.transcript_lists import TRANSCRIPTS_NAME

LANGUAGES = ("en", "de")
_CLIPS_PER_TASK = 8


@dataclass(frozen=True)
class _Clip:
    path: Path
    text: str
    language: str
    voice_index: int


def generate_speech(folder: Path, *, num_train: int, num_test: int, seed: int) -> None:
    """Speak `num_train` and `num_test` commands, half of each English and half German, into `folder`/{train,test}/{en,de}.

    Test sentences occur in training in no voice, and have no word that training lacks. Deterministic under `seed`.
    """
    for language in LANGUAGES:
        wanted_train, wanted_test = num_train // len(LANGUAGES), num_test // len(LANGUAGES)
        train, test = _split(make_sentences(language, wanted_train + wanted_test, seed=seed), wanted_test)
        for part, sentences in (("train", train), ("test", test)):
            target = folder / part / language
            if (target / TRANSCRIPTS_NAME).exists():
                continue
            target.mkdir(parents=True, exist_ok=True)
            clips = [
                _Clip(target / f"{language}-{part}-{i:05d}.flac", text, language, i % len(VOICES[language]))
                for i, text in enumerate(sentences)
            ]
            _speak_all(clips)
            # last, so that its presence says that the recordings are all there
            _write_transcripts(target, [(clip.path.name, clip.text) for clip in clips])


def _split(sentences: Sequence[str], num_test: int) -> tuple[list[str], list[str]]:
    """Take `num_test` sentences from the end whose words all occur in what remains."""
    train, test = list(sentences), list[str]()
    counts: dict[str, int] = {}
    for sentence in train:
        for word in words_of(sentence):
            counts[word] = counts.get(word, 0) + 1
    for sentence in reversed(sentences):
        if len(test) == num_test:
            break
        words = words_of(sentence)
        if all(counts[word] > words.count(word) for word in words):
            train.remove(sentence)
            test.append(sentence)
            for word in words:
                counts[word] -= 1
    return train, test


def _speak_all(clips: Sequence[_Clip]) -> None:
    """All clips, shared among processes forked from one that has loaded what they need and never spoken."""
    import soundfile  # noqa: F401

    start()
    with multiprocessing.get_context("fork").Pool(count_cores(), end_with_parent, (os.getpid(),)) as pool:
        pool.map(_write_clip, clips, chunksize=_CLIPS_PER_TASK)


def _write_clip(clip: _Clip) -> None:
    import soundfile

    soundfile.write(clip.path, speak(clip.text, VOICES[clip.language][clip.voice_index]), SAMPLE_RATE_HZ)


def _write_transcripts(folder: Path, items: Sequence[tuple[str, str]]) -> None:
    write_text(folder / TRANSCRIPTS_NAME, "".join(f"{file}\t{text}\n" for file, text in items))


def split_recordings(source: Path, folder: Path, *, test_fraction: float, seed: int) -> None:
    """Divide real recordings (`source`/LANGUAGE/transcripts.tsv) by sentence, linking the files into `folder`/{train,test}.

    Raises `DataError` if `source` has no such folder or a file is missing.
    """
    recordings = find_recordings(source)
    for language in sorted({recording.language for recording in recordings}):
        # a key is the language and the file within its folder
        paths = {
            recording.key.partition("/")[2] + recording.path.suffix: (recording.path, recording.transcript)
            for recording in recordings
            if recording.language == language
        }
        items = [(file, text) for file, (_, text) in paths.items()]
        train, test = split_by_sentence(items, test_fraction=test_fraction, seed=seed)
        for part, chosen in (("train", train), ("test", test)):
            target = folder / part / language
            target.mkdir(parents=True, exist_ok=True)
            for file, _ in chosen:
                link = target / file
                link.parent.mkdir(parents=True, exist_ok=True)
                link.unlink(missing_ok=True)
                link.symlink_to(paths[file][0].resolve())
            _write_transcripts(target, chosen)
