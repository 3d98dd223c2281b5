"""espeak-ng, through its library, as a set of voices that speak sentences into waveforms."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from kappaspeech.errors import InputError
from kappaspeech.needed_packages import need

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16_000
# Constants of espeak-ng's speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_CHARS_UTF8 = 1
_RATE, _PITCH = 1, 3
_CALLBACK_BUFFER_MS = 100
_NOISE_SEED = 1
# what a fork's answer begins with
_SPOKEN, _REFUSED = b"s", b"r"


@dataclass(frozen=True)
class Voice:
    """An espeak-ng voice with a variant, a speaking rate in words a minute and a pitch from 0 to 99."""

    name: str
    words_per_minute: int
    pitch: int


VOICES = {
    "en": (
        Voice("en-us", 160, 50),
        Voice("en-us+f2", 170, 60),
        Voice("en-us+m3", 150, 40),
        Voice("en", 165, 45),
        Voice("en+f3", 155, 65),
        Voice("en-GB-x-rp+m1", 175, 50),
        Voice("en-GB-scotland+f1", 160, 55),
        Voice("en-us+m7", 180, 35),
        Voice("en+f4", 150, 70),
    ),
    "de": (
        Voice("de", 160, 50),
        Voice("de+f2", 170, 60),
        Voice("de+m3", 150, 40),
        Voice("de+m1", 165, 45),
        Voice("de+f3", 155, 65),
        Voice("de+m2", 175, 50),
        Voice("de+f1", 160, 55),
        Voice("de+m7", 180, 35),
        Voice("de+f4", 150, 70),
    ),
}


class _Espeak:
    """The library, once a process: it keeps its state in globals."""

    def __init__(self) -> None:
        need("Generated speech", "espeakng_loader")
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = str(espeakng_loader.get_data_path()).encode()
        self.native_rate_hz = self._library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, _CALLBACK_BUFFER_MS, data, 0)
        if self.native_rate_hz <= 0:
            raise InputError("espeak-ng didn't start; reinstall the package espeakng-loader.")
        # the breath of some voices is noise that the library seeds with the time of day
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(_NOISE_SEED))
        self._chunks: list[bytes] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        # the library keeps the pointer; the object must live as long
        self._callback = kind(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            self._chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    def speak(self, text: str, voice: Voice) -> bytes:
        """16-bit samples at `native_rate_hz`."""
        if self._library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise InputError(f"espeak-ng has no voice {voice.name!r}.")
        self._library.espeak_SetParameter(_RATE, voice.words_per_minute, 0)
        self._library.espeak_SetParameter(_PITCH, voice.pitch, 0)
        self._chunks.clear()
        content = text.encode() + b"\0"
        status = self._library.espeak_Synth(content, len(content), 0, 0, 0, _CHARS_UTF8, None, None)
        self._library.espeak_Synchronize()
        if status != 0 or not self._chunks:
            raise InputError(f"espeak-ng said nothing for {text!r} (status {status}).")
        return b"".join(self._chunks)


@lru_cache(maxsize=1)
def _espeak() -> _Espeak:
    return _Espeak()


def start() -> None:
    """Start espeak-ng in this process without a sound, and load what `speak` needs. Raises `InputError` without the library."""
    import numpy as np  # noqa: F401
    import soxr  # noqa: F401

    _espeak()


def speak(text: str, voice: Voice) -> NDArray[np.float32]:
    """`text` spoken by `voice`, a function of both: mono float32 at `SAMPLE_RATE_HZ`.

    Raises `InputError` without the library or the voice.

    The library carries its oscillators' phases from one utterance to the next, so each is the first of a process of its own, a
    fork of this one, which never speaks. The fork is short: what comes after speaking is done here.
    """
    import numpy as np
    import soxr

    espeak = _espeak()
    samples = np.frombuffer(_speak_in_fork(espeak, text, voice), dtype=np.int16)
    resampled: NDArray[np.float32] = soxr.resample(samples.astype(np.float32) / 32768, espeak.native_rate_hz, SAMPLE_RATE_HZ)
    return resampled


def _speak_in_fork(espeak: _Espeak, text: str, voice: Voice) -> bytes:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        # nothing of the parent's may run here on the way out: neither its handlers nor its buffers
        code = 1
        try:
            with open(writing, "wb") as pipe:
                try:
                    pipe.write(_SPOKEN + espeak.speak(text, voice))
                    code = 0
                except InputError as error:
                    pipe.write(_REFUSED + str(error).encode())
        finally:
            os._exit(code)
    os.close(writing)
    try:
        with open(reading, "rb") as pipe:
            content = pipe.read()
    finally:
        _, status = os.waitpid(child, 0)
    if content[:1] == _REFUSED:
        raise InputError(content[1:].decode())
    if status != 0:
        raise InputError(f"espeak-ng ended while it said {text!r} (wait status {status}); reinstall the package espeakng-loader.")
    return content[1:]
