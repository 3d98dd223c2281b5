"""The audio that a list means: all of a file, which must be as long as the list says, or a segment of it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kappaspeech.speech.samples import SAMPLE_RATE_HZ, SHORTEST_SECONDS, BadSampleError, decode
from kappaspeech.speech.waveforms import find_fault

# The end of a segment may be rounded.
_SLACK_SECONDS = 0.1
# The length of a file is given to the second, or guessed from an mp3's bytes.
_LISTED_SLACK_SECONDS = 0.5
_LISTED_SLACK = 0.01


class Segment(Protocol):
    """A part of a file: `seconds` from `begin_seconds` on, or all that follows."""

    @property
    def begin_seconds(self) -> float: ...

    @property
    def seconds(self) -> float | None: ...


def cut_segment(waveform: NDArray[np.float32], recording: Segment) -> NDArray[np.float32]:
    """The listed part of a file's waveform (T,). Raises `BadSampleError` if the file ends before it, or if it is too short or
    silent, as a whole file may not be either."""
    part = find_segment(waveform, recording)
    check_speech(part)
    return part


def find_segment(waveform: NDArray[np.float32], recording: Segment) -> NDArray[np.float32]:
    """As `cut_segment`, for a part that may be silent."""
    begin = int(recording.begin_seconds * SAMPLE_RATE_HZ)
    end = len(waveform) if recording.seconds is None else begin + round(recording.seconds * SAMPLE_RATE_HZ)
    if begin >= len(waveform) or end - len(waveform) > _SLACK_SECONDS * SAMPLE_RATE_HZ:
        raise BadSampleError("truncated", f"{len(waveform) / SAMPLE_RATE_HZ:.2f} s, and {end / SAMPLE_RATE_HZ:.2f} s are wanted")
    part = waveform[begin:end]
    if len(part) < SHORTEST_SECONDS * SAMPLE_RATE_HZ:
        raise BadSampleError("short", f"{len(part) / SAMPLE_RATE_HZ:.3f} s")
    return part


def check_speech(part: NDArray[np.float32]) -> None:
    """Raise `BadSampleError` if the part of a file can't be speech."""
    if fault := find_fault(part):
        raise BadSampleError(*fault)


def decode_whole(content: bytes, listed: float | None, max_seconds: float | None = None) -> NDArray[np.float32]:
    """All of a file, which may not be longer than is wanted, and must be as long as its list says. Raises `BadSampleError`."""
    if listed is None:
        return decode(content, longest_seconds=max_seconds)
    slack = max(_LISTED_SLACK_SECONDS, _LISTED_SLACK * listed)
    says = f"the list says {listed:.2f} s (of a part of a file it would also give the offset)"
    is_nearer = max_seconds is None or listed + slack < max_seconds
    try:
        waveform = decode(content, longest_seconds=listed + slack if is_nearer else max_seconds)
    except BadSampleError as error:
        if error.cause == "too long" and is_nearer:
            raise BadSampleError("length", f"more than {listed + slack:.2f} s, and {says}") from error
        raise
    if len(waveform) / SAMPLE_RATE_HZ < listed - slack:
        raise BadSampleError("truncated", f"{len(waveform) / SAMPLE_RATE_HZ:.2f} s, and {says}")
    return waveform
