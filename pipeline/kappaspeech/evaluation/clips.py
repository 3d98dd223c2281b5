"""Clips to transcribe: files, folders, manifests, tables and shards as one list, and their audio."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kappaspeech.errors import DataError
from kappaspeech.escaping import encodable
from kappaspeech.evaluation.recordings import STANDARD_INPUT, convert, find_audio, needs_conversion, read_audio
from kappaspeech.outside import describe
from kappaspeech.redaction import redact
from kappaspeech.speech.listed_audio import cut_segment, decode_whole
from kappaspeech.speech.manifests import is_manifest
from kappaspeech.speech.patterns import shard_name
from kappaspeech.speech.recordings import Recording
from kappaspeech.speech.regular_files import is_regular
from kappaspeech.speech.sample_reader import sample_errors
from kappaspeech.speech.samples import SAMPLE_RATE_HZ, BadSampleError, check_whole, decode
from kappaspeech.speech.shard_audio import ShardMember, find_shards, list_members
from kappaspeech.speech.shards import known_seconds
from kappaspeech.speech.source import ReadOptions, need_reader
from kappaspeech.speech.sources import open_source
from kappaspeech.speech.table import MERGED_SUFFIX
from kappaspeech.speech.untranscribed import is_table, list_untranscribed

# what a second takes, where only the size is known: 16 kHz in 16 bits, half of it, and what speech codecs are given
_BYTES_A_SECOND = {"wav": 32_000, "flac": 16_000}
_COMPRESSED_BYTES_A_SECOND = 4_000
_OPEN_SOURCES = 64


@dataclass(frozen=True)
class Clip:
    """Something to transcribe. `name` tells it from others, `language` is "" if nobody named it, `seconds` is a guess by which
    work is shared out. `source` of type str says why it can't be read."""

    name: str
    source: Path | Recording | ShardMember | NDArray[np.float32] | str
    seconds: float = 0.0
    language: str = ""


def find_clips(words: Sequence[str]) -> list[Clip]:
    """The clips that a command line's words mean, in their order; a file that is named twice is taken once.

    A word is a file, a folder of files, a manifest of JSON lines, a table (.tsv), shards (.tar: a path, URL, glob or brace list),
    a merged index (.index), or - for standard input. Raises `DataError` if a word means nothing or a list can't be
    understood; a shard that can't be read is a clip that says so.
    """
    files: set[Path] = set()
    clips: list[Clip] = []
    for word in words:
        path = Path(word)
        if _is_shards(word):
            clips += _clips_of_shards(word)
        elif is_regular(path) and (is_manifest(path) or is_table(path)):
            clips += [_listed_clip(recording) for recording in list_untranscribed(path)]
        else:
            found = [file for file in find_audio([path]) if file not in files]
            files.update(found)
            clips += [_standard_input() if file == STANDARD_INPUT else Clip(str(file), file, _guess_file(file)) for file in found]
    if not clips:
        raise DataError(f"There is no recording in {', '.join(map(redact, words))}.")
    return clips


def _is_shards(word: str) -> bool:
    return "://" in word or (shard_name(word).endswith((".tar", MERGED_SUFFIX)) and not Path(word).is_dir())


def _clips_of_shards(pattern: str) -> Iterator[Clip]:
    need_reader(pattern)
    for where in find_shards(pattern):
        try:
            members = list_members(where)
        except DataError as error:
            yield Clip(redact(where), str(error))
            continue
        for member in members:
            seconds = member.seconds or _guess(member.kind, member.num_bytes)
            yield Clip(f"{redact(member.where)}/{member.key}", member, seconds, member.language)


def _listed_clip(recording: Recording) -> Clip:
    """A line of a list; a part of a file has its times behind its name, as a URL has them (W3C media fragments)."""
    begin, seconds = recording.begin_seconds, recording.seconds
    end = "" if seconds is None else f",{begin + seconds:.10g}"
    name = str(recording.path) if recording.is_whole else f"{recording.path}#t={begin:.10g}{end}"
    known = seconds or recording.listed_seconds
    return Clip(name, recording, known or max(0.0, _guess_file(recording.path) - begin), recording.language)


def _standard_input() -> Clip:
    try:
        waveform = read_audio(STANDARD_INPUT)
    except DataError as error:
        return Clip(str(STANDARD_INPUT), str(error))
    return Clip(str(STANDARD_INPUT), waveform, len(waveform) / SAMPLE_RATE_HZ)


def _guess_file(path: Path) -> float:
    """A file's length by its header, or by its size; 0 if it can't be opened, which its reading will tell."""
    import soundfile

    try:
        # to open a pipe waits for its other end
        if not is_regular(path):
            return 0.0
        try:
            return known_seconds(float(soundfile.info(path).duration))
        except (soundfile.SoundFileError, TypeError):
            return _guess(path.suffix.lstrip("."), path.stat().st_size)
    except (OSError, ValueError):
        return 0.0


def _guess(kind: str, num_bytes: int) -> float:
    return num_bytes / _BYTES_A_SECOND.get(kind.lower(), _COMPRESSED_BYTES_A_SECOND)


class ClipReader:
    """Reads clips; keeps shards open, and of a file that is listed in parts the waveform."""

    def __init__(self, options: ReadOptions | None = None) -> None:
        read = options or ReadOptions()
        self._open = lru_cache(maxsize=_OPEN_SOURCES)(lambda where: open_source(where, read))
        # a clip is itself alone: names of URLs are shortened, and two may be alike
        self._ahead: tuple[Clip, NDArray[np.float32]] | None = None
        self._whole: tuple[Path, NDArray[np.float32]] | None = None

    def read(self, clip: Clip) -> NDArray[np.float32]:
        """The waveform (T,), mono at 16 kHz. Raises `DataError`, whatever is wrong with the clip."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] is clip:
            return ahead[1]
        try:
            with sample_errors():
                return self._read(clip)
        except BadSampleError as error:
            raise DataError(f"{clip.name} can't be used as audio ({error}).") from error

    def read_ahead(self, clip: Clip) -> None:
        """Keep the waveform until it is read. Raises `DataError`."""
        self._ahead = clip, self.read(clip)

    def _read(self, clip: Clip) -> NDArray[np.float32]:
        source = clip.source
        if isinstance(source, str):
            raise DataError(source)
        if isinstance(source, Path):
            return read_audio(source)
        if isinstance(source, Recording):
            return self._read_listed(source)
        if isinstance(source, ShardMember):
            content = self._open(source.where).read(source.offset, source.num_bytes)
            return decode(content, expected_seconds=source.seconds or None)
        return source

    def _read_listed(self, recording: Recording) -> NDArray[np.float32]:
        if recording.fault is not None:
            raise BadSampleError(*recording.fault)
        if recording.is_whole:
            return decode_whole(_read_file(recording), recording.listed_seconds)
        if self._whole is None or self._whole[0] != recording.path:
            self._whole = None
            self._whole = recording.path, decode(_read_file(recording))
        # not a view, which would keep the whole file
        return cut_segment(self._whole[1], recording).copy()


def _read_file(recording: Recording) -> bytes:
    try:
        content = convert(recording.path) if needs_conversion(recording.path) else recording.read()
    except (OSError, ValueError) as error:
        raise DataError(f"{encodable(recording.name)} can't be read: {describe(error)}.") from error
    check_whole(content)
    return content
