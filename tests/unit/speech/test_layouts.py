"""Published corpora, in miniature, as one list of recordings, packed and read back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kappaspeech.commands import main
from kappaspeech.errors import DataError
from kappaspeech.speech.corpus import SpeechDataset
from kappaspeech.speech.held_out import read_test_batches
from kappaspeech.speech.layouts import LAYOUTS, find_recordings
from kappaspeech.speech.packing import pack
from kappaspeech.speech.recordings import Recording, Request, make_key
from tests.speech_files import clip, save, write_nemo_tars, write_parquet, write_shar


def librispeech(root: Path) -> dict[str, tuple[str, str]]:
    save(root / "test-clean/61/70968/61-70968.trans.txt", "61-70968-0000 HE BEGAN\n61-70968-0001 A CONFUSED COMPLAINT\n")
    for number in range(2):
        save(root / f"test-clean/61/70968/61-70968-000{number}.flac", clip(1.0, seed=number))
    return {"en/61-70968-0000": ("HE BEGAN", "en"), "en/61-70968-0001": ("A CONFUSED COMPLAINT", "en")}


def common_voice(root: Path) -> dict[str, tuple[str, str]]:
    rows = ["client_id\tpath\tsentence\tup_votes\tlocale", 'x\tcv_1.mp3\tEr sagte "ja".\t2\tde', "x\tcv_2.mp3\tÄpfel\t2\tde"]
    save(root / "validated.tsv", "\n".join(rows) + "\n")
    save(root / "other.tsv", rows[0] + "\n")
    for number in (1, 2):
        save(root / f"clips/cv_{number}.mp3", clip(1.0, "MP3", 44_100, seed=number))
    return {"de/cv_1": ('Er sagte "ja".', "de"), "de/cv_2": ("Äpfel", "de")}


def mls(root: Path) -> dict[str, tuple[str, str]]:
    save(root / "mls_german/train/transcripts.txt", "10_20_000001\tguten tag\n")
    save(root / "mls_german/train/audio/10/20/10_20_000001.opus", clip(1.0, "OGG", 48_000))
    return {"de/10_20_000001": ("guten tag", "de")}


def voxpopuli(root: Path) -> dict[str, tuple[str, str]]:
    save(root / "de/asr_train.tsv", "id\traw_text\tnormalized_text\n20170314-0900-x\tHerr Präsident!\therr präsident\n")
    save(root / "de/2017/20170314-0900-x.ogg", clip(1.0, "OGG", 48_000))
    return {"de/20170314-0900-x": ("Herr Präsident!", "de")}


def manifest(root: Path) -> dict[str, tuple[str, str]]:
    lines = [
        {"audio_filepath": "long.flac", "offset": 0.5, "duration": 1.0, "text": "the middle", "lang": "en"},
        {"audio_filepath": "long.flac", "duration": 3.0, "text": "all of it", "lang": "EN"},
    ]
    save(root / "train.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    save(root / "long.flac", clip(3.0))
    return {"en/00000001-long": ("the middle", "en"), "en/00000002-long": ("all of it", "en")}


def dataset(root: Path) -> dict[str, tuple[str, str]]:
    import datasets

    content = {
        "audio": [{"path": None, "bytes": clip(1.0, seed=n)} for n in range(3)],
        "sentence": ["one", "two", "three"],
        "locale": ["en", "en", "de"],
    }
    # a struct of bytes and path is how Arrow holds audio; encoding it as such would need torchcodec
    stored = {"path": datasets.Value("string"), "bytes": datasets.Value("binary")}
    features = datasets.Features({"audio": stored, "sentence": datasets.Value("string"), "locale": datasets.Value("string")})
    datasets.Dataset.from_dict(content, features=features).cast_column("audio", datasets.Audio()).save_to_disk(str(root / "data"))
    return {"en/00000000": ("one", "en"), "en/00000001": ("two", "en"), "de/00000002": ("three", "de")}


def parquet(root: Path) -> dict[str, tuple[str, str]]:
    for split, rows in (("train-00000-of-00002", (0, 1, 2)), ("train-00001-of-00002", (3,)), ("test-00000-of-00001", (4,))):
        write_parquet(root / f"data/{split}.parquet", [(clip(1.0, seed=n), f"text {n}", "de" if n == 3 else "en") for n in rows])
    keys = [f"en/data/train-00000-of-00002-{n:06d}" for n in range(3)] + ["de/data/train-00001-of-00002-000000"]
    return {key: (f"text {n}", key[:2]) for n, key in enumerate(keys)}


def nemo_tars(root: Path) -> dict[str, tuple[str, str]]:
    write_nemo_tars(root)
    return {
        "en/0-00000001-a_one": ("all of one", "en"),
        "en/0-00000002-a_long": ("its beginning", "en"),
        "en/0-00000003-a_long-sub1": ("its end", "en"),
        "de/1-00000001-b_two": ("zwei", "de"),
    }


def shar(root: Path) -> dict[str, tuple[str, str]]:
    write_shar(root)
    return {
        "en/000000-000001": ("one and one more", "en"),
        "en/000000-000002": ("two", "en"),
        "de/000001-000001": ("drei", "de"),
    }


CORPORA = {
    "librispeech": (librispeech, ""),
    "commonvoice": (common_voice, ""),
    "mls": (mls, "mls_german/train"),
    "voxpopuli": (voxpopuli, "de"),
    "manifest": (manifest, "train.jsonl"),
    "dataset": (dataset, "data"),
    "parquet": (parquet, ""),
    "nemo-tars": (nemo_tars, ""),
    "shar": (shar, ""),
}


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_is_recognised_and_packed_whole(tmp_path, name):
    make, place = CORPORA[name]
    expected = make(tmp_path / "corpus")
    source = tmp_path / "corpus" / place
    assert find_recordings(source) == find_recordings(source, layout=name)
    pack(find_recordings(source), tmp_path / "shards", shard_size=10, num_processes=1)
    batches = read_test_batches([SpeechDataset(str(tmp_path / "shards/*.tar"))], batch_size=2)
    read = {sample.key: sample for batch in batches for sample in batch}
    assert {key: (sample.transcript, sample.language) for key, sample in read.items()} == expected
    for key, sample in read.items():
        seconds = 3.0 if key == "en/00000002-long" else 1.0
        assert len(sample.waveform) / 16_000 == pytest.approx(seconds, abs=0.06), key


def test_another_column_or_key_holds_the_text(tmp_path):
    save(tmp_path / "m.jsonl", json.dumps({"audio_filepath": "a.flac", "text": "a", "answer": "b", "lang": "en"}) + "\n")
    dataset(tmp_path)
    for source, column, said in ((tmp_path / "m.jsonl", "answer", ["b"]), (tmp_path / "data", "locale", ["en", "en", "de"])):
        assert [item.transcript for item in find_recordings(source, text_column=column)] == said
        with pytest.raises(DataError, match="gone"):
            find_recordings(source, text_column="gone")


def test_a_translation_is_in_the_language_of_its_target(tmp_path):
    line = {"audio_filepath": "a.flac", "text": "Guten Tag", "source_lang": "en", "target_lang": "de"}
    save(tmp_path / "m.jsonl", json.dumps(line) + "\n")
    assert [recording.language for recording in find_recordings(tmp_path / "m.jsonl")] == ["de"]
    del line["target_lang"]
    save(tmp_path / "m.jsonl", json.dumps(line) + "\n")
    assert [recording.language for recording in find_recordings(tmp_path / "m.jsonl")] == ["en"]


def test_a_language_that_is_given_counts_for_folders_of_any_name(tmp_path):
    for folder in ("speaker1", "speaker2", "german"):
        save(tmp_path / f"{folder}/transcripts.tsv", "000.flac\tGuten Tag\n")
        save(tmp_path / f"{folder}/000.flac", b"x")
    found = {recording.key: recording.language for recording in find_recordings(tmp_path, language="de")}
    assert found == dict.fromkeys(("de/speaker1/000", "de/speaker2/000", "de/000"), "de")
    assert {recording.language for recording in find_recordings(tmp_path)} == {"speaker1", "speaker2", "de"}


def test_a_segment_is_the_recordings_own_samples(tmp_path):
    manifest(tmp_path)
    pack(find_recordings(tmp_path / "train.jsonl"), tmp_path / "shards", shard_size=10, num_processes=1)
    batches = read_test_batches([SpeechDataset(str(tmp_path / "shards/*.tar"))], batch_size=2)
    read = {sample.key: sample.waveform for batch in batches for sample in batch}
    np.testing.assert_array_equal(read["en/00000001-long"], read["en/00000002-long"][8_000:24_000])


def test_the_report_says_what_was_packed_and_left_out(tmp_path, capsys):
    librispeech(tmp_path / "corpus")
    save(tmp_path / "corpus/test-more/1-2.trans.txt", "1-2-0000 GONE\n1-2-0001 NOISE\n1-2-0002 \n1-2-0003 LONG\n")
    save(tmp_path / "corpus/test-more/1-2-0001.flac", b"no audio at all")
    save(tmp_path / "corpus/test-more/1-2-0002.flac", clip(1.0))
    save(tmp_path / "corpus/test-more/1-2-0003.flac", clip(4.0))
    words = ["pack", str(tmp_path / "corpus"), str(tmp_path / "shards"), "--workers", "1", "--max-seconds", "3"]
    assert main(words) == 2
    assert "4 recording(s)" in capsys.readouterr().err
    for _ in range(2):  # the second time from what the first has left
        assert main([*words, "--skip-bad"]) == 0
        report = json.loads((tmp_path / "shards/report.json").read_text())
        assert report["languages"]["en"]["samples"] == 2
        assert report["languages"]["en"]["hours"] == pytest.approx(2 / 3600)
        assert report["languages"]["en"]["seconds_quantiles"]["0.5"] == 1.0
        causes = {Path(name).stem: cause.split(":")[0] for name, cause in report["rejected"].items()}
        assert causes["1-2-0001"] == "decode"
        assert causes["1-2-0002"] == "empty text"
        assert causes["1-2-0003"] == "too long"
        assert "No such file" in report["rejected"][str(tmp_path / "corpus/test-more/1-2-0000.flac")]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("not json", "line 1: wanted is audio_filepath and text"),
        ('{"audio_filepath": "x.flac"}', "line 1: wanted is audio_filepath and text"),
        ('{"audio_filepath": "x.flac", "text": "a"}', "names no language"),
        ('{"audio_filepath": "\\ud800.flac", "text": "a", "lang": "en"}', "line 1: wanted is audio_filepath and text"),
        ("", "no recording"),
    ],
)
def test_a_manifest_that_cannot_be_understood_is_named(tmp_path, lines, says):
    save(tmp_path / "m.jsonl", lines)
    with pytest.raises(DataError, match=says):
        find_recordings(tmp_path / "m.jsonl")


def test_what_is_no_corpus_says_what_would_be(tmp_path):
    save(tmp_path / "readme.md", "nothing here")
    with pytest.raises(DataError, match=r"readme\.md.*librispeech"):
        find_recordings(tmp_path)
    with pytest.raises(DataError, match="no layout 'nonsense'"):
        find_recordings(tmp_path, layout="nonsense")


def test_two_recordings_of_one_name_are_refused(tmp_path):
    for part in ("a", "b"):
        save(tmp_path / part / "1-2.trans.txt", "1-2-0000 TEXT\n")
        save(tmp_path / part / "1-2-0000.flac", clip(1.0))
    with pytest.raises(DataError, match="would both be packed as en/1-2-0000"):
        find_recordings(tmp_path)


def test_a_layout_that_joins_the_table_is_told_from_what_lies_there_and_packed(tmp_path, monkeypatch):
    """A file of one's own a recording, its text beside it: two functions and an entry."""

    def read_pairs(source: Path, _request: Request) -> Iterator[Recording]:
        for path in sorted(source.glob("*.said")):
            yield Recording(make_key("en", path.stem), path.with_suffix(".flac"), path.read_text(), "en")

    monkeypatch.setitem(LAYOUTS, "pairs", (lambda source: any(source.glob("*.said")), read_pairs))
    save(tmp_path / "pairs/a.said", "good morning")
    save(tmp_path / "pairs/a.flac", clip(1.0))
    assert [(item.key, item.transcript) for item in find_recordings(tmp_path / "pairs")] == [("en/a", "good morning")]
    report = pack(find_recordings(tmp_path / "pairs", layout="pairs"), tmp_path / "shards", shard_size=10, num_processes=1)
    assert sum(len(index.samples) for index in report.shards) == 1
