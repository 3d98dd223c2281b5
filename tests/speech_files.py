"""Audio, lists and tars as tests write them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import soundfile


def clip(seconds: float, kind: str = "FLAC", rate: int = 16_000, seed: int = 0) -> bytes:
    """Noise in a container of this kind."""
    buffer = io.BytesIO()
    subtype = {"FLAC": "PCM_16", "OGG": "OPUS", "MP3": "MPEG_LAYER_III"}[kind]
    noise = np.random.default_rng(seed).normal(0, 0.1, int(rate * seconds))
    soundfile.write(buffer, noise, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def save(path: Path, content: bytes | str) -> None:
    """Write a file, in a folder that needn't be there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def make_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar of these members."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def details(**content) -> bytes:
    """A sample's json."""
    return json.dumps(content).encode()
