"""Bytes → waveform → log-mel, and back to bytes, one sample at a time."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kappaspeech.errors import DataError
from kappaspeech.speech import waveforms
from kappaspeech.speech.pauses import FRAME_SAMPLES, find_cut, frame_decibels
from kappaspeech.speech.recordings import AUDIO_EXTENSIONS
from kappaspeech.speech.waveforms import SAMPLE_RATE_HZ as SAMPLE_RATE_HZ
from kappaspeech.speech.waveforms import SHORTEST_SECONDS as SHORTEST_SECONDS
from kappaspeech.speech.waveforms import find_fault, mix

LONGEST_PIECE_SECONDS = 24.0
# what an encoder that reads waveforms has in place of mel bands: one row, whose frames are samples
WAVEFORM_ROWS = 1
# An encoder may round a clip's length; half-truncated mp3, wav and opus decode without an error, only shorter.
_DURATION_TOLERANCE_SECONDS = 0.1
# Resampling multiplies: a second at a few hertz would become hours.
_RATES_HZ = (1_000, 1_000_000)
# Some recorders count their header in.
_MISSING_BYTES, _MISSING_FRACTION = 4096, 0.01
_UNKNOWN_SIZE = 0x7FFF0000
_PIECE_VALUES = 1 << 20


@dataclass(frozen=True)
class AudioSample:
    """An utterance: `waveform` float32 [num_samples], mono, 16 kHz; the instruction that it is read with, if not the run's, and
    the name of its data set, if there are several."""

    key: str
    waveform: NDArray[np.float32]
    transcript: str
    language: str
    instruction: str | None = None
    dataset: str = ""


class BadSampleError(Exception):
    """A sample that can't be used. `cause` is one of a few words, so that causes can be counted."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause


def decode(content: bytes, *, expected_seconds: float | None = None, longest_seconds: float | None = None) -> NDArray[np.float32]:
    """Decode flac, wav, mp3, ogg or opus to mono float32 at 16 kHz; no more of it than is expected or wanted at the longest.

    Channels are averaged, but if they cancel each other out (one is inverted) the loudest is taken. Raises `BadSampleError`
    ("decode", "rate", "truncated", "length", "too long", "short", "silent", "scale") rather than give a wrong waveform.
    """
    import soxr

    limit = longest_seconds if expected_seconds is None else expected_seconds + _DURATION_TOLERANCE_SECONDS
    waveform, rate_hz = _read_audio(content, limit)
    seconds = len(waveform) / rate_hz
    if expected_seconds is not None and seconds < expected_seconds - _DURATION_TOLERANCE_SECONDS:
        raise BadSampleError("truncated", f"{seconds:.2f} s decoded of {expected_seconds:.2f} s")
    if limit is not None and seconds > limit:
        if expected_seconds is not None:
            raise BadSampleError("length", f"more than {limit:.2f} s decoded of {expected_seconds:.2f} s")
        raise BadSampleError("too long", f"more than {limit:.1f} s")
    if seconds < SHORTEST_SECONDS:
        raise BadSampleError("short", f"{seconds:.3f} s")
    mono = mix(waveform)
    if fault := find_fault(mono):
        raise BadSampleError(*fault)
    if rate_hz != SAMPLE_RATE_HZ:
        mono = np.asarray(soxr.resample(mono, rate_hz, SAMPLE_RATE_HZ), dtype=np.float32)
    return mono


def _read_audio(content: bytes, limit_seconds: float | None) -> tuple[NDArray[np.float32], int]:
    """Samples (T, channels) and their rate; of more than `limit_seconds` one sample more than that.

    Read piece by piece: what a header says of the length is believed once it was decoded.
    """
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            rate_hz = int(file.samplerate)
            if not _RATES_HZ[0] <= rate_hz <= _RATES_HZ[1]:
                raise BadSampleError("rate", f"{rate_hz} Hz; wanted is {_RATES_HZ[0]} to {_RATES_HZ[1]}")
            left = None if limit_seconds is None else int(limit_seconds * rate_hz) + 1
            pieces = []
            while left is None or left > 0:
                wanted = max(1, _PIECE_VALUES // file.channels) if left is None else min(left, _PIECE_VALUES // file.channels)
                pieces.append(file.read(wanted, dtype="float32", always_2d=True))
                if len(pieces[-1]) < wanted:
                    break
                left = None if left is None else left - wanted
    except (soundfile.SoundFileError, ValueError, TypeError) as error:
        raise BadSampleError("decode", explain_undecodable(error)) from error
    return (pieces[0] if len(pieces) == 1 else np.concatenate(pieces)), rate_hz


def encode(waveform: NDArray[np.float32]) -> bytes:
    """FLAC of a waveform (T,) at 16 kHz; one that overshoots 1, as a lossy format's may, is scaled to it."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, waveform / max(1.0, float(np.abs(waveform).max())), SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def check_whole(content: bytes) -> None:
    """Raise `BadSampleError` for a wav of which much is missing: it decodes without an error, only shorter than its transcript.

    A program that writes to a pipe doesn't know the size, and gives 0 or the largest there is.
    """
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        return
    place = 12
    while place + 8 <= len(content):
        size = int.from_bytes(content[place + 4 : place + 8], "little")
        if content[place : place + 4] == b"data":
            missing = place + 8 + size - len(content)
            if size < _UNKNOWN_SIZE and missing > max(_MISSING_BYTES, _MISSING_FRACTION * size):
                raise BadSampleError("truncated", f"{missing} of {size} bytes of the wav are missing")
            return
        place += 8 + size + size % 2


def explain_undecodable(error: Exception) -> str:
    """Return libsndfile's message without the address of a buffer, and for an unknown format those that can be read."""
    said = str(getattr(error, "error_string", error)).strip().rstrip(".")
    known = ", ".join(AUDIO_EXTENSIONS)
    return f"{said}; what is read is {known}, so convert others with ffmpeg" if "not recognised" in said else said


def read_recording(path: Any) -> NDArray[np.float32]:
    """Decode a recording of any length. Raises `DataError` naming the file and what is wrong with it."""
    try:
        with open(path, "rb") as file:
            return decode(file.read())
    except FileNotFoundError:
        raise DataError(f"There is no recording at {path}.") from None
    except OSError as error:
        raise DataError(f"{path} can't be read: {error}") from error
    except BadSampleError as error:
        raise DataError(f"{path} can't be used as audio ({error}). Wanted is {', '.join(AUDIO_EXTENSIONS)}.") from error


def cut_at_pauses(waveform: NDArray[np.float32], *, longest_seconds: float = LONGEST_PIECE_SECONDS) -> list[NDArray[np.float32]]:
    """Pieces of at most `longest_seconds`, cut in the pauses that `pauses.find_cut` finds; together the whole waveform."""
    longest = int(longest_seconds * SAMPLE_RATE_HZ) // FRAME_SAMPLES
    decibels = frame_decibels(waveform) if len(waveform) > longest * FRAME_SAMPLES else None
    pieces, first = [], 0
    while decibels is not None and len(waveform) - first * FRAME_SAMPLES > longest * FRAME_SAMPLES:
        end = first + find_cut(decibels[first : first + longest])
        pieces.append(waveform[first * FRAME_SAMPLES : end * FRAME_SAMPLES])
        first = end
    return [*pieces, waveform[first * FRAME_SAMPLES :]]


def log_mel(waveform: NDArray[np.float32], num_mels: int) -> NDArray[np.float32]:
    """`waveforms.log_mel` by Whisper's own filters, (num_mels, frames)."""
    from whisper.audio import mel_filters

    return waveforms.log_mel(waveform, mel_filters("cpu", num_mels))


def encoder_input(waveform: NDArray[np.float32], num_mels: int) -> NDArray[np.float32]:
    """A clip as an encoder reads it, (num_mels, frames): its log-mel, or for `WAVEFORM_ROWS` the waveform itself."""
    return waveform[None] if num_mels == WAVEFORM_ROWS else log_mel(waveform, num_mels)
