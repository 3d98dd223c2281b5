"""Transcripts of whole recordings, in pieces with times, as text, JSON or SubRip."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Segment:
    """A piece of a recording, between two of its pauses, and what was said in it.

    `confidence` is the geometric mean of its tokens' probabilities, from 0 to 1; None if it wasn't asked for.
    """

    start_seconds: float
    end_seconds: float
    text: str
    confidence: float | None = None


@dataclass(frozen=True)
class Transcript:
    """A recording's segments, in order."""

    recording: str
    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        return " ".join(segment.text for segment in self.segments if segment.text)


def to_text(transcripts: Sequence[Transcript]) -> str:
    """A line each: recording, tab, text."""
    return "".join(f"{transcript.recording}\t{transcript.text}\n" for transcript in transcripts)


def to_json(transcripts: Sequence[Transcript]) -> str:
    """An object with each recording's text and segments."""
    content = [{"recording": t.recording, "text": t.text, "segments": list(map(asdict, t.segments))} for t in transcripts]
    return json.dumps({"schema_version": SCHEMA_VERSION, "recordings": content}, ensure_ascii=False, indent=1) + "\n"


def to_srt(transcript: Transcript) -> str:
    """SubRip subtitles: number, times to the millisecond, text, blank line. Segments without a word are left out."""
    spoken = [segment for segment in transcript.segments if segment.text]
    return "".join(
        f"{number}\n{_srt_time(segment.start_seconds)} --> {_srt_time(segment.end_seconds)}\n{segment.text}\n\n"
        for number, segment in enumerate(spoken, start=1)
    )


def _srt_time(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d},{rest % 1000:03d}"
