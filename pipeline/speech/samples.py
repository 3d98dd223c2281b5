"""Bytes → waveform → log-mel, one sample at a time."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError

SAMPLE_RATE_HZ = 16_000
# Two hops of Whisper's spectrogram: its second convolution halves the frames, so their number is kept even.
_FRAME_PAIR = 320
_SHORTEST_SECONDS = 0.1
_LONGEST_PIECE_SECONDS = 24.0
_PAUSE_SECONDS = 0.2
# An encoder may round a clip's length; half-truncated mp3, wav and opus decode without an error, only shorter.
_DURATION_TOLERANCE_SECONDS = 0.1


@dataclass(frozen=True)
class AudioSample:
    """An utterance: `waveform` float32 [num_samples], mono, 16 kHz."""

    key: str
    waveform: NDArray[np.float32]
    transcript: str
    language: str


class BadSampleError(Exception):
    """A sample that can't be used. `cause` is one of a few words, so that causes can be counted."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause


def decode(content: bytes, *, expected_seconds: float | None = None) -> NDArray[np.float32]:
    """Decode flac, wav, mp3, ogg or opus to mono float32 at 16 kHz.

    Raises `BadSampleError` («decode», «truncated», «short», «silent») rather than give a wrong waveform.
    """
    import soundfile
    import soxr

    try:
        waveform, rate_hz = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, ValueError, TypeError) as error:
        raise BadSampleError("decode", str(error)) from error
    mono: NDArray[np.float32] = waveform[:, 0] if waveform.shape[1] == 1 else waveform.mean(axis=1, dtype=np.float32)
    seconds = len(mono) / rate_hz
    if expected_seconds is not None and abs(seconds - expected_seconds) > _DURATION_TOLERANCE_SECONDS:
        raise BadSampleError("truncated", f"{seconds:.2f} s decoded of {expected_seconds:.2f} s")
    if seconds < _SHORTEST_SECONDS:
        raise BadSampleError("short", f"{seconds:.3f} s")
    if not np.isfinite(mono).all():
        raise BadSampleError("decode", "NaN or Inf in the waveform")
    if not mono.any():
        raise BadSampleError("silent", "every sample is zero")
    if rate_hz != SAMPLE_RATE_HZ:
        mono = np.asarray(soxr.resample(mono, rate_hz, SAMPLE_RATE_HZ), dtype=np.float32)
    return mono


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
        raise DataError(f"{path} can't be used as audio ({error}). Wanted is flac, wav, mp3, ogg or opus.") from error


def cut_at_pauses(waveform: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Pieces of at most `_LONGEST_PIECE_SECONDS`, cut where the last third of each is quietest; together the whole waveform."""
    longest, hop = int(_LONGEST_PIECE_SECONDS * SAMPLE_RATE_HZ), int(_PAUSE_SECONDS * SAMPLE_RATE_HZ)
    pieces = []
    while len(waveform) > longest:
        power = np.square(waveform[:longest].reshape(-1, hop)).mean(axis=1)
        first = len(power) * 2 // 3
        cut = (first + int(power[first:].argmin())) * hop + hop // 2
        pieces.append(waveform[:cut])
        waveform = waveform[cut:]
    return [*pieces, waveform]


def log_mel(waveform: NDArray[np.float32], num_mels: int) -> NDArray[np.float32]:
    """Whisper's log-mel spectrogram of one clip, (num_mels, frames), without padding to 30 s.

    Always of a single clip: Whisper clamps relative to the loudest cell of its whole input, so features of a batch would
    depend on its neighbours. The waveform is filled with silence to a whole number of frame pairs.
    """
    import torch
    from whisper.audio import log_mel_spectrogram

    filled = np.pad(waveform, (0, -len(waveform) % _FRAME_PAIR))
    features: NDArray[np.float32] = log_mel_spectrogram(torch.from_numpy(filled), num_mels).numpy()
    return features
