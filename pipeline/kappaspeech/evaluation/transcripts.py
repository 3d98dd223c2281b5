"""Transcripts of whole recordings, in pieces with times, as text, JSON or SubRip."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kappaspeech.escaping import encodable, for_column

if TYPE_CHECKING:
    from kappaspeech.evaluation.decoding import Ending

SCHEMA_VERSION = 1
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@dataclass(frozen=True)
class Segment:
    """A piece of a recording, between two of its pauses, and what was said in it.

    `confidence` is the geometric mean of the probabilities of its `num_tokens` tokens, from 0 to 1; None if it wasn't asked for.
    """

    start_seconds: float
    end_seconds: float
    text: str
    confidence: float | None = None
    ending: Ending = "end"
    num_tokens: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "start_seconds": self.start_seconds,
            "end_seconds": self.end_seconds,
            "text": self.text,
            "confidence": self.confidence,
            "ending": self.ending,
        }


@dataclass(frozen=True)
class Transcript:
    """A recording's segments, in order, or why it can't be read; `language` is what its list says, "" for nothing."""

    recording: str
    segments: tuple[Segment, ...]
    seconds: float = 0.0
    language: str = ""
    error: str | None = None

    @property
    def text(self) -> str:
        return " ".join(segment.text for segment in self.segments if segment.text)

    @property
    def confidence(self) -> float | None:
        """The geometric mean of all its tokens' probabilities; None if a segment has none."""
        counts = [segment.num_tokens for segment in self.segments]
        known = [segment.confidence for segment in self.segments if segment.confidence is not None]
        if len(known) < len(counts) or not sum(counts):
            return None
        if min(known) <= 0:
            return 0.0
        return math.exp(math.fsum(count * math.log(value) for count, value in zip(counts, known, strict=True)) / sum(counts))


def to_line(transcript: Transcript) -> dict[str, Any]:
    """A recording's line of a log of transcripts (JSON lines)."""
    name = encodable(transcript.recording)
    if transcript.error is not None:
        return {"recording": name, "error": transcript.error}
    return {
        "recording": name,
        "text": transcript.text,
        "seconds": round(transcript.seconds, 3),
        "language": transcript.language or None,
        "confidence": transcript.confidence,
        "segments": [segment.to_json() for segment in transcript.segments],
    }


def to_text(transcripts: Sequence[Transcript]) -> str:
    """A line each: recording, tab, text. What would end a line and what a terminal obeys is escaped in a name, and a space in a
    text."""
    return "".join(f"{for_column(encodable(item.recording))}\t{_on_one_line(item.text)}\n" for item in transcripts)


def to_json(transcripts: Sequence[Transcript]) -> str:
    """An object with each recording's text and segments."""
    content = [
        {"recording": item.recording, "text": item.text, "segments": [segment.to_json() for segment in item.segments]}
        for item in transcripts
    ]
    return json.dumps({"schema_version": SCHEMA_VERSION, "recordings": content}, ensure_ascii=False, indent=1) + "\n"


def to_srt(transcript: Transcript) -> str:
    """SubRip subtitles: number, times to the millisecond, text on one line, blank line. Segments without a word are left out."""
    spoken = [segment for segment in transcript.segments if segment.text]
    return "".join(
        f"{number}\n{_srt_time(segment.start_seconds)} --> {_srt_time(segment.end_seconds)}\n{_on_one_line(segment.text)}\n\n"
        for number, segment in enumerate(spoken, start=1)
    )


def _on_one_line(text: str) -> str:
    """`text` with a space in the place of a model's line feeds, tabs and other control characters: they would end a line or a
    subtitle, or be obeyed by a terminal."""
    return _CONTROL.sub(" ", text)


def _srt_time(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d},{rest % 1000:03d}"
