"""The recordings that a person names: files of any kind, folders, standard input; and whether a model knows such lengths."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kappaspeech.artefacts import read_json
from kappaspeech.errors import DataError, KappaSpeechError
from kappaspeech.speech.recordings import AUDIO_EXTENSIONS
from kappaspeech.speech.regular_files import is_litter
from kappaspeech.speech.samples import SAMPLE_RATE_HZ, BadSampleError, decode, read_recording

STANDARD_INPUT = Path("-")
# what ffmpeg reads and libsndfile doesn't
CONVERTED_EXTENSIONS = ("m4a", "aac", "mp4", "webm", "wma", "amr", "mkv", "mov")
_FFMPEG_SECONDS = 600.0
# a piece that is so many times as long as any training clip is another task
_FAR_LONGER = 1.5


def find_audio(paths: Sequence[Path]) -> list[Path]:
    """`paths` with each folder replaced by the audio files below it, by name. Raises `DataError` if it has none."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        kinds = {f".{kind}" for kind in (*AUDIO_EXTENSIONS, *CONVERTED_EXTENSIONS)}
        named = (item for item in path.rglob("*") if item.suffix.lower() in kinds and not is_litter(item.name))
        inside = sorted(item for item in named if item.is_file())
        if not inside:
            raise DataError(f"{path} has no audio files ({', '.join(sorted(kind[1:] for kind in kinds))}).")
        found += inside
    return found


def read_audio(path: Path) -> NDArray[np.float32]:
    """A recording of any length, mono at 16 kHz; `-` is standard input. Raises `DataError`."""
    if path == STANDARD_INPUT:
        try:
            return decode(sys.stdin.buffer.read())
        except BadSampleError as error:
            raise DataError(f"Standard input can't be used as audio ({error}).") from error
    if not needs_conversion(path):
        return read_recording(path)
    try:
        return decode(convert(path))
    except BadSampleError as error:
        raise DataError(f"{path} can't be used as audio ({error}).") from error


def needs_conversion(path: Path) -> bool:
    """Return whether a file is there and of a kind that ffmpeg alone reads."""
    return path.suffix.lower().lstrip(".") in CONVERTED_EXTENSIONS and path.exists()


def convert(path: Path) -> bytes:
    """A file of another kind as wav, by ffmpeg. Raises `DataError`."""
    program = shutil.which("ffmpeg")
    if program is None:
        raise DataError(
            f"{path} is {path.suffix.lstrip('.')}, which needs ffmpeg, and ffmpeg isn't installed. Install it (apt-get install "
            "ffmpeg), or convert the file to flac or wav."
        )
    # a name may begin with a dash, and only a local file is meant
    words = [program, "-nostdin", "-v", "error", "-protocol_whitelist", "file,pipe", "-i", f"file:{path}"]
    words += ["-vn", "-ac", "1", "-ar", str(SAMPLE_RATE_HZ), "-f", "wav", "-"]
    try:
        done = subprocess.run(words, capture_output=True, timeout=_FFMPEG_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise DataError(f"ffmpeg didn't convert {path} in {_FFMPEG_SECONDS:.0f} s.") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise DataError(f"ffmpeg can't read {path}: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout


def warn_of_length(model: Path, longest_seconds: float) -> str | None:
    """A warning if pieces are far longer than the clips that a run was trained on; None if they aren't, or if that isn't
    recorded.
    """
    try:
        plan = read_json(model / "run.json", schema_version=1).get("plan") or {}
        trained = float(plan["assumptions"]["batches"]["longest_seconds"])
    except (OSError, KeyError, TypeError, ValueError, KappaSpeechError):
        return None
    if longest_seconds <= _FAR_LONGER * trained:
        return None
    return (
        f"warning: pieces of up to {longest_seconds:.1f} s are decoded, and {model} was trained on clips of at most about "
        f"{trained:.1f} s: their texts may be wrong or cut. Shorter pieces: --piece-seconds {max(1, round(trained))}."
    )
