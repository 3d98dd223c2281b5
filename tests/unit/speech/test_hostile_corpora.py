"""Any value in place of what lists of corpora hold, and any bytes of a table, give recordings or a sentence, soon."""

from __future__ import annotations

import gzip
import json

from kappaspeech.speech import parquet_rows
from kappaspeech.speech.layouts import find_recordings
from tests.fuzzing import cuts, damage, edits, fuzzed, given, json_changes, try_out, with_changes
from tests.speech_files import make_tar, save, write_parquet


@fuzzed
@given(json_changes)
def test_cuts_of_lhotse_with_any_value_changed(tmp_path, changes):
    segment = {"id": "s", "recording_id": "b", "start": 0, "duration": 1.0, "text": "drei", "language": "de"}
    cut = {"id": "b", "start": 0, "duration": 1.0, "type": "MonoCut", "supervisions": [segment, {**segment, "start": 0.5}]}
    make_tar(tmp_path / "recording.000000.tar", [("b.flac", b"x"), ("b.json", b"{}")])
    save(tmp_path / "cuts.000000.jsonl.gz", gzip.compress(json.dumps(with_changes(cut, changes)).encode()))
    try_out(lambda: [item.read() for item in find_recordings(tmp_path)])


@fuzzed
@given(json_changes)
def test_lines_of_tarred_manifests_with_any_value_changed(tmp_path, changes):
    entry = {"audio_filepath": "a-sub1.flac", "duration": 1.0, "offset": 0.5, "text": "a", "lang": "de", "shard_id": 0}
    make_tar(tmp_path / "audio_0.tar", [("a.flac", b"x")])
    save(tmp_path / "tarred_audio_manifest.json", json.dumps(with_changes(entry, changes)).encode())
    try_out(lambda: [item.read() for item in find_recordings(tmp_path, layout="nemo-tars")])


@fuzzed
@given(edits, cuts)
def test_parquet_files_with_any_bytes_changed(tmp_path, changes, cut):
    path = tmp_path / "train.parquet"
    if not path.with_suffix(".whole").exists():
        write_parquet(path, [(b"abc", f"text {n}", "en") for n in range(4)])
        path.rename(path.with_suffix(".whole"))
    path.write_bytes(damage(path.with_suffix(".whole").read_bytes(), changes, cut))
    parquet_rows.open_parquet.cache_clear()
    try_out(lambda: find_recordings(path))
