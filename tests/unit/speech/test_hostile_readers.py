"""Any bytes in place of shards, their indices, lists of recordings or samples give a result or a sentence, soon."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import strategies as st

from kappaspeech.errors import DataError
from kappaspeech.speech.corpus import Corpus, SpeechDataset
from kappaspeech.speech.layouts import find_recordings
from kappaspeech.speech.sample_reader import SampleReader
from kappaspeech.speech.samples import decode
from kappaspeech.speech.shard_indexing import index_shard
from kappaspeech.speech.shards import INDEX_SUFFIX, expand, write_index
from kappaspeech.speech.source import ReadOptions
from kappaspeech.speech.table import SampleTable, write_merged
from tests.fuzzing import cuts, damage, edits, fuzzed, given, json_changes, junk, texts, try_out, with_changes


def audio(kind: str) -> bytes:
    file = io.BytesIO()
    waveform = np.random.default_rng(0).normal(0, 0.1, 1600).astype("f4")
    soundfile.write(file, waveform, 16_000, format=kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A shard of two samples with its index and a merged one."""
    folder = tmp_path_factory.mktemp("made")
    with tarfile.open(folder / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind in (("a", "FLAC"), ("b" * 120, "WAV")):
            details = {"text": "guten tag", "language": "de", "duration": 0.1}
            for extension, content in ((kind.lower(), audio(kind)), ("json", json.dumps(details).encode())):
                member = tarfile.TarInfo(f"{name}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    index = index_shard(str(folder / "x.tar"))
    write_index(index)
    write_merged(SampleTable.of([index]), folder / "all.index")
    return folder


def read_all(shards: Path) -> None:
    corpus = Corpus(SpeechDataset(str(shards)), named=True)
    refs = [corpus.ref(index) for index in range(min(corpus.num_samples, 4))]
    corpus.lengths()
    assert len(SampleReader(ReadOptions()).read(refs)) == len(refs)


@fuzzed
@given(edits, cuts)
def test_tars_with_any_bytes_changed(tmp_path, made, changes, cut):
    path = tmp_path / "x.tar"
    path.write_bytes(damage((made / "x.tar").read_bytes(), changes, cut))

    def use() -> None:
        write_index(index_shard(str(path), default_language="de"))
        read_all(path)

    try_out(use)


@fuzzed
@given(json_changes, st.one_of(st.none(), st.binary(max_size=40)))
def test_tars_with_any_value_changed_in_their_details(tmp_path, changes, content):
    details = with_changes({"text": "guten tag", "language": "de", "duration": 0.1, "lang": "de"}, changes)
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name, held in (("a.flac", audio("FLAC")), ("a.json", json.dumps(details).encode() if content is None else content)):
            member = tarfile.TarInfo(name)
            member.size = len(held)
            tar.addfile(member, io.BytesIO(held))

    def use() -> None:
        write_index(index_shard(str(path), default_language="de"))
        read_all(path)

    try_out(use)


@fuzzed
@given(json_changes, st.one_of(st.none(), st.none(), st.binary(max_size=40)))
def test_indices_with_any_value_changed(tmp_path, made, changes, content):
    path = tmp_path / "x.tar"
    if not path.exists():
        shutil.copy2(made / "x.tar", path)
    changed = with_changes(json.loads((made / f"x.tar{INDEX_SUFFIX}").read_text()), changes)
    Path(f"{path}{INDEX_SUFFIX}").write_bytes(json.dumps(changed).encode() if content is None else content)
    try_out(lambda: read_all(path))


@fuzzed
@given(edits, cuts, json_changes, st.booleans())
def test_merged_indices_with_anything_changed(tmp_path, made, changes, cut, values, is_header):
    if not (tmp_path / "x.tar").exists():
        shutil.copy2(made / "x.tar", tmp_path / "x.tar")
    content = (made / "all.index").read_bytes()
    if is_header:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        header["__metadata__"]["index"] = json.loads(header["__metadata__"]["index"])
        header = with_changes(header, values)
        if isinstance(header, dict) and isinstance(header.get("__metadata__"), dict):
            header["__metadata__"] = {name: json.dumps(value) for name, value in header["__metadata__"].items()}
        text = json.dumps(header).encode()
        content = len(text).to_bytes(8, "little") + text + content[8 + length :]
    else:
        content = damage(content, changes, cut)
    path = tmp_path / "all.index"
    path.unlink(missing_ok=True)  # the last one may be mapped still
    path.write_bytes(content)
    try_out(lambda: read_all(path))


rows = st.one_of(
    st.fixed_dictionaries(
        {"audio_filepath": st.one_of(st.just("a.wav"), junk), "text": st.one_of(texts, junk)},
        optional={name: st.one_of(texts, junk) for name in ("lang", "language", "duration", "offset", "transcript", "path")},
    ),
    junk,
)


@fuzzed
@given(st.lists(rows, max_size=3), st.one_of(st.none(), st.none(), st.binary(max_size=60)), st.booleans())
def test_manifests_of_anything(tmp_path, entries, content, keeps_faults):
    if not (tmp_path / "a.wav").exists():
        (tmp_path / "a.wav").write_bytes(audio("WAV"))
    path = tmp_path / "m.jsonl"
    path.write_bytes("\n".join(map(json.dumps, entries)).encode() if content is None else content)
    try_out(lambda: find_recordings(path, language="de", keeps_faults=keeps_faults))


COMMON_VOICE = (
    "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tlocale\n1\ta.mp3\tguten tag\t2\t0\t\t\t\tde\n"
)
TABLES = {
    "transcripts": ("de/transcripts.tsv", b"a.wav\tguten tag\nb.wav\thallo\n"),
    "Common Voice": ("train.tsv", COMMON_VOICE.encode()),
    "MLS": ("train/transcripts.txt", b"1_2_0\tguten tag\n1_2_1\thallo\n"),
    "LibriSpeech": ("train-clean-100/1/2/1-2.trans.txt", b"1-2-0000 GUTEN TAG\n1-2-0001 HALLO\n"),
    "VoxPopuli": ("asr_train.tsv", b"id\traw_text\tnormalized_text\tspeaker_id\n2009-1\tGuten Tag.\tguten tag\t1\n"),
}


@fuzzed
@given(
    st.sampled_from(sorted(TABLES)), edits, cuts, st.one_of(st.none(), st.none(), st.binary(max_size=60), texts), st.booleans()
)
def test_tables_of_anything(tmp_path, name, changes, cut, whole, keeps_faults):
    folder = tmp_path / name
    path, content = folder / TABLES[name][0], TABLES[name][1]
    if whole is not None:
        content = whole if isinstance(whole, bytes) else whole.encode("utf-8", "surrogatepass")
    path.parent.mkdir(parents=True, exist_ok=True)
    (folder / "clips").mkdir(exist_ok=True)
    path.write_bytes(damage(content, changes, cut) if content else content)
    try_out(lambda: find_recordings(folder, language="de", keeps_faults=keeps_faults))


@fuzzed
@given(st.sampled_from(["FLAC", "WAV", "OGG", "MP3"]), edits, cuts)
def test_audio_with_any_bytes_changed(kind, changes, cut):
    content = damage(AUDIO[kind], [(place * place, value) for place, value in changes], cut)
    try_out(lambda: decode(content, expected_seconds=0.1, longest_seconds=30.0))


AUDIO = {kind: audio(kind) for kind in ("FLAC", "WAV", "OGG", "MP3")}


@fuzzed
@given(st.one_of(texts, st.text("{}.,/0123456789abx*?[]:@%-", max_size=30)))
def test_names_of_shards_of_anything(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    # no server is asked
    try_out(lambda: expand(name.replace("//", "/")))


@pytest.mark.parametrize(
    "change",
    [
        {"shard_end": {"dtype": "I64", "shape": [0], "data_offsets": [0, 0]}},
        {"key_end": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}},
        {"seconds": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}},
        {"seconds": {"dtype": "F32", "shape": [2], "data_offsets": [0, 1e300]}},
        {"seconds": {"dtype": "F32", "shape": [2], "data_offsets": [0, 1 << 40]}},
        {"seconds": []},
        {"__metadata__": {"index": []}},
        {"__metadata__": []},
        {"languages": []},
        {"languages": [3]},
        {"fingerprint": 3},
        {"fingerprint": None},
        {"shards": []},
        {"shards": [["x.tar", {"num_bytes": "x", "stamp": "", "digest": ""}]]},
        {"shards": [["x.tar", {"num_bytes": 1, "stamp": None, "digest": ""}]]},
        {"shards": [[3, {}]]},
        {"shards": 5},
    ],
    ids=str,
)
def test_a_merged_index_whose_parts_do_not_fit_is_refused_by_name(tmp_path, made, change):
    shutil.copy2(made / "x.tar", tmp_path / "x.tar")
    content = (made / "all.index").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    index = json.loads(header["__metadata__"]["index"])
    if change.keys() <= index.keys():
        change = {"__metadata__": {"index": json.dumps(index | change)}}
    text = json.dumps(header | change).encode()
    path = tmp_path / "all.index"
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(DataError, match="is no merged index"):
        read_all(path)


def test_a_merged_index_that_is_deep_or_a_pipe_is_refused(tmp_path):
    path = tmp_path / "all.index"
    text = b"[" * 100_000
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(DataError, match="nested too deeply"):
        read_all(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="it is a pipe"):
        read_all(path)


def test_a_key_of_a_merged_index_that_lies_nowhere_is_refused(made):
    table = SampleTable.of([index_shard(str(made / "x.tar"))])
    for ends in ([200, 121], [-5, 121], [1, 121]):
        columns = {**table.columns, "key_end": np.array(ends), "key_bytes": np.full(121, 255, np.uint8)}
        with pytest.raises(DataError, match=r"Sample \d of a merged index has no key"):
            SampleTable(table.shards, table.languages, columns).shard_entries(0)
