"""Flite's statistical English voices, where the command `flite` is installed: speech of another kind than espeak-ng's."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kappaspeech.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# of those built into the command; `kal` has 8 kHz and `awb_time` tells times alone
FLITE_VOICES = ("awb", "kal16", "rms", "slt")
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class FliteVoice:
    """A voice, and how many times as long as by default it takes."""

    name: str
    stretch: float


def has_flite() -> bool:
    """True if the command is on the PATH."""
    return shutil.which("flite") is not None


def speak_by_flite(text: str, voice: FliteVoice, sample_rate_hz: int) -> NDArray[np.float32]:
    """`text` spoken by `voice`: mono float32 at `sample_rate_hz`. Raises `InputError` if the command fails."""
    import soundfile
    import soxr

    with tempfile.TemporaryDirectory() as folder:
        written, spoken = Path(folder, "text"), Path(folder, "speech.wav")
        written.write_text(text, encoding="utf-8")
        options = ["-voice", voice.name, "--setf", f"duration_stretch={voice.stretch}"]
        command = ["flite", *options, "-f", str(written), "-o", str(spoken)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InputError(f"flite failed on {text!r}: {error}. Remove it, or repair it.") from error
        if done.returncode or not spoken.exists():
            raise InputError(f"flite failed on {text!r}: {done.stderr.strip()[-200:]}. Remove it, or repair it.")
        samples, rate_hz = soundfile.read(spoken, dtype="float32")
    if not len(samples):
        raise InputError(f"flite said nothing for {text!r} with the voice {voice.name}.")
    resampled: NDArray[np.float32] = soxr.resample(samples, rate_hz, sample_rate_hz)
    return resampled
