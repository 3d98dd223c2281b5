"""A run on NeMo's tars and lhotse's Shar where they lie, against one on shards of the same clips."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kappaspeech.speech.shards import expand, read_index
from tests.speech_files import make_tar, save


def read_shard(where: str) -> list[tuple[str, dict, bytes]]:
    """Key, details and flac of each of a shard's samples."""
    content = Path(where).read_bytes()
    found = []
    for entry in read_index(where).samples:
        details = json.loads(content[entry.text_offset : entry.text_offset + entry.text_bytes])
        found.append((entry.key, details, content[entry.audio_offset : entry.audio_offset + entry.audio_bytes]))
    return found


def write_as_nemo(pattern: str, root: Path) -> None:
    root.mkdir()
    lines = []
    for number, where in enumerate(expand(pattern)):
        samples = [(f"{key.replace('/', '_')}.flac", details, flac) for key, details, flac in read_shard(where)]
        make_tar(root / f"audio_{number}.tar", [(name, flac) for name, _, flac in samples])
        for name, details, _ in samples:
            known = {"text": details["text"], "lang": details["language"], "duration": details["duration"]}
            lines.append(json.dumps({"audio_filepath": name, "shard_id": number, **known}) + "\n")
    save(root / "tarred_audio_manifest.json", "".join(lines))


def write_as_shar(pattern: str, root: Path) -> None:
    root.mkdir()
    for number, where in enumerate(expand(pattern)):
        samples = read_shard(where)
        make_tar(root / f"recording.{number:06d}.tar", [(f"{key}.flac", flac) for key, _, flac in samples])
        cuts = [
            {
                "id": key,
                "duration": details["duration"],
                "supervisions": [{"text": details["text"], "language": details["language"]}],
            }
            for key, details, _ in samples
        ]
        save(root / f"cuts.{number:06d}.jsonl", "".join(json.dumps(cut) + "\n" for cut in cuts))


@pytest.mark.slow
def test_a_run_learns_and_is_tested_as_on_shards_of_the_same_clips(train, one_rank, home, tmp_path):
    write_as_nemo(str(home / "shards/train/*.tar"), tmp_path / "nemo")
    write_as_shar(str(home / "shards/test/*.tar"), tmp_path / "shar")
    run = train(
        "in-place",
        data__train=[{"shards": str(tmp_path / "nemo"), "language": language} for language in ("en", "de")],
        data__test=[{"shards": str(tmp_path / "shar")}],
        data__feature_cache_dir=str(tmp_path / "cache"),
        data__num_workers=1,
    )

    def losses(folder: Path) -> list[float]:
        return [json.loads(line)["loss_nats"] for line in (folder / "steps.jsonl").read_text().splitlines()]

    def heard(folder: Path) -> list[tuple[str, str]]:
        lines = [json.loads(line) for line in (folder / "hypotheses/step-000004.jsonl").read_text().splitlines()]
        return sorted((line["reference"], line["hypothesis"]) for line in lines)

    assert len(losses(one_rank)) == 4
    assert losses(run) == losses(one_rank)
    assert len(heard(run)) == 6
    assert heard(run) == heard(one_rank)
    assert list((tmp_path / "cache").rglob("*.states"))
