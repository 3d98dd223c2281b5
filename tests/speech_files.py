"""Audio, lists and tars as tests write them."""

from __future__ import annotations

import gzip
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


def write_parquet(
    path: Path, rows: list[tuple[bytes | None, str | None, str]], *, group_size: int = 2, text: str = "sentence"
) -> None:
    """Audio, text and locale of each row, as the hub's Parquet files hold them."""
    import pyarrow
    from pyarrow import parquet

    audio = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns = {
        "audio": pyarrow.array([{"bytes": content, "path": f"{n}.flac"} for n, (content, _, _) in enumerate(rows)], audio),
        text: pyarrow.array([said for _, said, _ in rows], pyarrow.string()),
        "locale": pyarrow.array([locale for *_, locale in rows], pyarrow.string()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path, row_group_size=group_size)


def write_nemo_tars(root: Path) -> None:
    """Two tars and a manifest of each, as NeMo's convert_to_tarred_audio_dataset.py leaves them; one file has two parts."""
    root.mkdir(parents=True, exist_ok=True)
    make_tar(root / "audio_0.tar", [("a_one.flac", clip(1.0)), ("a_long.flac", clip(2.0, seed=1))])
    make_tar(root / "audio_1.tar", [("b_two.flac", clip(1.0, seed=2)), ("b_other.flac", clip(1.0))])
    lines: dict[int, list[dict[str, object]]] = {
        0: [
            {"audio_filepath": "a_one.flac", "duration": 1.0, "text": "all of one", "lang": "en"},
            {"audio_filepath": "a_long.flac", "duration": 1.0, "offset": 0.0, "text": "its beginning", "lang": "en"},
            {"audio_filepath": "a_long-sub1.flac", "duration": 1.0, "offset": 1.0, "text": "its end", "lang": "en"},
        ],
        1: [
            {"audio_filepath": "b_two.flac", "duration": 1.0, "text": "zwei", "lang": "de"},
            {"audio_filepath": "b_other.flac", "duration": 1.0, "text": "drei", "lang": "de", "_skipme": 1},
        ],
    }
    for shard, entries in lines.items():
        content = "".join(json.dumps({**entry, "shard_id": shard}) + "\n" for entry in entries)
        save(root / f"sharded_manifests/manifest_{shard}.json", content)


def write_shar(root: Path) -> None:
    """Two shards of Lhotse Shar, with a field beside the recordings, as `CutSet.to_shar` writes them."""
    cuts = {
        "000000": [("a.1", "en", ["one and", "one more"]), ("sub/a2", "en", ["two"])],
        "000001": [("b", "German", ["drei"])],
    }
    root.mkdir(parents=True, exist_ok=True)
    for shard, items in cuts.items():
        members, lines = [], []
        for number, (name, language, texts) in enumerate(items):
            recording = {"id": name, "sampling_rate": 16_000, "num_samples": 16_000, "duration": 1.0}
            members += [(f"{name}.flac", clip(1.0, seed=number)), (f"{name}.json", details(**recording))]
            # not in the order of their times
            supervisions = [
                {
                    "id": f"{name}-{place}",
                    "recording_id": name,
                    "start": place / 2,
                    "duration": 0.5,
                    "text": text,
                    "language": language,
                }
                for place, text in reversed(list(enumerate(texts)))
            ]
            cut = {"id": name, "start": 0, "duration": 1.0, "channel": 0, "type": "MonoCut", "supervisions": supervisions}
            lines.append(json.dumps({**cut, "recording": recording}) + "\n")
        make_tar(root / f"recording.{shard}.tar", members)
        save(root / f"cuts.{shard}.jsonl.gz", gzip.compress("".join(lines).encode()))
        save(root / f"target.{shard}.jsonl.gz", gzip.compress(b""))
