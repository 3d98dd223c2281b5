"""Speech of an open vocabulary: the sentences of any text, spoken by many voices, until there are as many hours as asked for.

A model learns to listen from variety: a grammar of commands has eighty words, an hour of one speaker nine hundred sentences.
"""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kappaspeech.artefacts import write_text
from kappaspeech.demo.flite import FLITE_VOICES, FliteVoice, has_flite, speak_by_flite
from kappaspeech.demo.sentences import words_of
from kappaspeech.demo.voices import SAMPLE_RATE_HZ, VOICES, Voice, speak, start
from kappaspeech.errors import DataError, InputError
from kappaspeech.outputs import write_with
from kappaspeech.parenthood import end_with_parent
from kappaspeech.processors import count_cores
from kappaspeech.speech.transcript_lists import TRANSCRIPTS_NAME

_MIN_WORDS, _MAX_WORDS = 3, 20
# what ends a sentence, with the quotes and brackets that close after it
_END = re.compile(r"(?<=[.!?…])[\"'”’\u00bb)\]]*\s+")
_DROPPED = re.compile(r"[\"“”„\u00ab\u00bb*_()\[\]]")
_VARIANTS = ("", "+f1", "+f2", "+f3", "+f4", "+m1", "+m2", "+m3", "+m5", "+m7")
_WORDS_PER_MINUTE = (130, 200)
_PITCH = (25, 75)
_STRETCH = (0.85, 1.2)
# flite's four voices beside some thirty of espeak-ng's
_FLITE_SHARE = 0.4
# clips between two looks at how long all are; it bounds what is spoken in vain, and never what is kept
_CLIPS_PER_ROUND = 256
_CLIPS_PER_TASK = 8


@dataclass(frozen=True)
class Spoken:
    """A folder of one language that was written: its clips and their seconds."""

    folder: Path
    num_clips: int
    seconds: float


@dataclass(frozen=True)
class _Clip:
    path: Path
    text: str
    voice: Voice | FliteVoice


def read_sentences(path: Path) -> list[str]:
    """The different sentences of a text file, of 3 to 20 words, in their order.

    A sentence with digits or signs is left out: how it is spoken can't be read off its letters. Quotes and brackets are dropped.
    Raises `DataError` if the file isn't UTF-8, `InputError` if it can't be read or has none.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} isn't UTF-8 (byte {error.start}); convert it, for instance by iconv.") from error
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}.") from error
    found: dict[str, str] = {}
    for piece in itertools.chain.from_iterable(_END.split(line) for line in lines):
        sentence = " ".join(_DROPPED.sub("", piece).replace("’", "'").split())
        words = words_of(sentence)
        if _MIN_WORDS <= len(words) <= _MAX_WORDS and _is_plain(sentence):
            found.setdefault(" ".join(words), sentence)
    if not found:
        raise InputError(f"{path} has no sentence of {_MIN_WORDS} to {_MAX_WORDS} words in letters.")
    return list(found.values())


def _is_plain(sentence: str) -> bool:
    return all(letter.isalpha() or letter in " ,.;:!?'-–…" for letter in sentence)


def speak_texts(texts: Path, folder: Path, *, hours: float, num_test: int, seed: int) -> list[Spoken]:
    """Speak the sentences of `texts`/LANGUAGE.txt into `folder`/{train,test}/LANGUAGE: `hours` to train on, over all languages.

    `num_test` sentences, over all languages, are for testing and are in training in no voice; of what was read twice neither
    case nor punctuation makes another sentence. If the sentences don't fill the time they are spoken again by other voices.
    Deterministic under `seed` for the voices that are installed. What was interrupted goes on. Raises `InputError` and
    `DataError`.
    """
    files = sorted(texts.glob("*.txt"))
    if not files:
        raise InputError(f"{texts} has no file LANGUAGE.txt, such as en.txt; `kappaspeech demo replay` writes some.")
    _begin()
    spoken = []
    for file in files:
        language, sentences = file.stem, read_sentences(file)
        random.Random(f"{seed}/{language}").shuffle(sentences)
        held_out = num_test // len(files)
        if len(sentences) <= held_out:
            raise InputError(f"{file} has {len(sentences)} sentences, and {held_out} are to be tested on; give more text.")
        test, train = sentences[:held_out], sentences[held_out:]
        parts = (("train", itertools.cycle(train), hours / len(files) * 3600), ("test", iter(test), float("inf")))
        for part, wanted, seconds in parts:
            spoken.append(_speak_part(folder / part / language, wanted, language=language, seconds=seconds, seed=seed))
    return spoken


def _begin() -> None:
    # before the fork, so that no process loads them again
    import soundfile  # noqa: F401
    import soxr  # noqa: F401

    start()


def _speak_part(folder: Path, sentences: Iterator[str], *, language: str, seconds: float, seed: int) -> Spoken:
    """Speak sentences until they take `seconds`, or end."""
    folder.mkdir(parents=True, exist_ok=True)
    made: list[tuple[_Clip, float]] = []
    clips = _clips(folder, sentences, language, f"{seed}/{folder.parent.name}/{language}")
    with multiprocessing.get_context("fork").Pool(count_cores(), end_with_parent, (os.getpid(),)) as pool:
        left = seconds
        while left > 0 and (batch := list(itertools.islice(clips, _CLIPS_PER_ROUND))):
            for clip, duration in zip(batch, pool.map(_write_clip, batch, chunksize=_CLIPS_PER_TASK), strict=True):
                if left > 0:
                    made.append((clip, duration))
                    left -= duration
                else:
                    clip.path.unlink(missing_ok=True)
    # last, so that its presence says that the recordings are all there
    write_text(folder / TRANSCRIPTS_NAME, "".join(f"{clip.path.name}\t{clip.text}\n" for clip, _ in made))
    return Spoken(folder, len(made), sum(duration for _, duration in made))


def _clips(folder: Path, sentences: Iterator[str], language: str, seed: str) -> Iterator[_Clip]:
    voices = draw_voices(language, seed=seed)
    for index, (text, voice) in enumerate(zip(sentences, voices, strict=False)):
        # an interrupted folder goes on with the clips of the same text and voice alone
        content = hashlib.sha256(f"{text}\n{voice}".encode()).hexdigest()[:8]
        yield _Clip(folder / f"{language}-{index:06d}-{content}.flac", text, voice)


def draw_voices(language: str, *, seed: str) -> Iterator[Voice | FliteVoice]:
    """Voices without end, each of a speaking rate and a pitch of its own; for English a share of them flite's, if it is there.

    A language without voices of the quickstart has espeak-ng's own, by its code.
    """
    source = random.Random(seed)
    bases: Sequence[str] = sorted({voice.name.partition("+")[0] for voice in VOICES.get(language, ())}) or [language]
    by_flite = language == "en" and has_flite()
    while True:
        if by_flite and source.random() < _FLITE_SHARE:
            yield FliteVoice(source.choice(FLITE_VOICES), round(source.uniform(*_STRETCH), 2))
        else:
            name = source.choice(bases) + source.choice(_VARIANTS)
            yield Voice(name, source.randint(*_WORDS_PER_MINUTE), source.randint(*_PITCH))


def _write_clip(clip: _Clip) -> float:
    """Write a clip, unless it is there whole, and return its seconds."""
    import soundfile

    if not clip.path.exists():
        if isinstance(clip.voice, FliteVoice):
            waveform = speak_by_flite(clip.text, clip.voice, SAMPLE_RATE_HZ)
        else:
            waveform = speak(clip.text, clip.voice)
        write_with(clip.path, lambda path: soundfile.write(path, waveform, SAMPLE_RATE_HZ, format="FLAC"))
    return float(soundfile.info(clip.path).duration)
