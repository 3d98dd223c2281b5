"""Test speech isn't trained on: splits, asked for and not."""

from __future__ import annotations

import pytest

from kappaspeech.errors import DataError
from kappaspeech.speech.layouts import find_recordings
from kappaspeech.speech.splits import choose_splits
from tests.speech_files import save, write_parquet


def names(source, split=None, **options) -> set[str]:
    return {recording.key.rsplit("/", 1)[-1] for recording in find_recordings(source, split=split, **options)}


@pytest.mark.parametrize(
    ("available", "chosen"),
    [
        (["train", "val"], ["train"]),
        (["train", "Val_seen", "test2", "tst2013", "eval92", "development", "holdout", "Test.clean"], ["train"]),
        # without a split of the name: what isn't held out
        (["xs", "s", "dev", "test"], ["xs", "s"]),
        (["", "dev"], [""]),
        (["dev", "test"], ["dev", "test"]),
    ],
)
def test_what_is_held_out_is_not_trained_on_whatever_it_is_called(tmp_path, available, chosen):
    assert choose_splits(tmp_path, available, None) == chosen


def test_a_val_split_of_parquet_files_and_of_folders_is_held_out(tmp_path):
    for split in ("train", "val"):
        write_parquet(tmp_path / f"parquet/data/{split}-00000-of-00001.parquet", [(b"x", split, "de")])
        save(tmp_path / f"folders/{split}/de/transcripts.tsv", f"{split}.flac\ttext\n")
        save(tmp_path / f"folders/{split}/de/{split}.flac", b"x")
    assert [recording.transcript for recording in find_recordings(tmp_path / "parquet")] == ["train"]
    assert [recording.transcript for recording in find_recordings(tmp_path / "parquet", split="val")] == ["val"]
    assert names(tmp_path / "folders") == {"train"}
    assert names(tmp_path / "folders", "val") == {"val"}


@pytest.fixture
def common_voice(tmp_path):
    (tmp_path / "de/clips").mkdir(parents=True)
    for split, clips in {"train": "a", "dev": "b", "test": "c", "validated": "abcd", "other": "e"}.items():
        rows = "".join(f"x\t{clip}.mp3\tein Satz\tde\n" for clip in clips)
        save(tmp_path / f"de/{split}.tsv", f"client_id\tpath\tsentence\tlocale\n{rows}")
    save(tmp_path / "de/clip_durations.tsv", "clip\tduration[ms]\na.mp3\t1000\n")
    return tmp_path / "de"


def test_common_voice_is_trained_on_by_its_train_split(common_voice):
    assert names(common_voice) == {"a"}
    assert names(common_voice, "test") == {"c"}
    assert names(common_voice, "validated") == set("abcd")
    assert names(common_voice / "test.tsv") == {"c"}
    with pytest.raises(DataError, match=r"no split 'eval'; it has dev, other, test, train, validated"):
        names(common_voice, "eval")


def test_common_voice_without_a_train_split_is_asked_for_one(common_voice):
    (common_voice / "train.tsv").unlink()
    with pytest.raises(DataError, match="say with --split"):
        names(common_voice)
    assert names(common_voice, "dev") == {"b"}


def test_librispeech_is_trained_on_by_its_train_splits(tmp_path):
    for split in ("train-clean-100", "train-other-500", "dev-clean", "test-clean"):
        save(tmp_path / split / "1/2/1-2.trans.txt", f"{split} TEXT\n")
        save(tmp_path / split / "1/2/._1-2.trans.txt", b"\0\5\x16\7\xff")
    assert names(tmp_path) == {"train-clean-100", "train-other-500"}
    assert names(tmp_path, "train-clean-100") == {"train-clean-100"}
    assert names(tmp_path, "test") == {"test-clean"}
    assert names(tmp_path / "test-clean") == {"test-clean"}
    assert names(tmp_path / "test-clean", "test") == {"test-clean"}
    with pytest.raises(DataError, match="no split 'train'"):
        names(tmp_path / "test-clean", "train")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("dutch", "nl"),
        ("english", "en"),
        ("french", "fr"),
        ("german", "de"),
        ("italian", "it"),
        ("polish", "pl"),
        ("portuguese", "pt"),
        ("spanish", "es"),
    ],
)
def test_mls_has_codes_for_its_languages_and_splits_below_it(tmp_path, name, code):
    root = tmp_path / f"mls_{name}_opus"
    for split in ("train", "dev", "test"):
        (root / split / "audio").mkdir(parents=True)
        save(root / split / "transcripts.txt", f"1_2_{split}\tein Satz\n")
    assert {recording.language for recording in find_recordings(root)} == {code}
    assert names(root) == {"1_2_train"}
    assert names(root, "test") == names(root / "test") == {"1_2_test"}


def test_voxpopuli_is_trained_on_by_its_train_split(tmp_path):
    for split in ("train", "dev", "test"):
        save(tmp_path / f"de/asr_{split}.tsv", f"id\traw_text\n2017-{split}\tGuten Tag\n")
    assert names(tmp_path / "de") == {"2017-train"}
    assert names(tmp_path / "de", "dev") == names(tmp_path / "de/asr_dev.tsv") == {"2017-dev"}


def test_folders_with_transcripts_may_be_splits(tmp_path):
    for split in ("train", "test"):
        save(tmp_path / f"{split}/en/transcripts.tsv", f"{split}.flac\ttext\n")
        save(tmp_path / f"{split}/en/{split}.flac", b"x")
    assert names(tmp_path) == {"train"}
    assert names(tmp_path, "test") == names(tmp_path / "test") == {"test"}


def test_a_dictionary_of_datasets_has_splits(tmp_path):
    import datasets

    stored = {"path": datasets.Value("string"), "bytes": datasets.Value("binary")}
    features = datasets.Features({"audio": stored, "sentence": datasets.Value("string"), "locale": datasets.Value("string")})

    def make(*texts):
        content = {"audio": [{"path": None, "bytes": b"x"}] * len(texts), "sentence": list(texts), "locale": ["nl"] * len(texts)}
        return datasets.Dataset.from_dict(content, features=features).cast_column("audio", datasets.Audio())

    datasets.DatasetDict({"train": make("een", "twee"), "test": make("drie")}).save_to_disk(str(tmp_path / "all"))
    assert [recording.transcript for recording in find_recordings(tmp_path / "all")] == ["een", "twee"]
    assert [recording.transcript for recording in find_recordings(tmp_path / "all", split="test")] == ["drie"]
    make("een", None).save_to_disk(str(tmp_path / "one"))
    with pytest.raises(DataError, match=r"one \[1\]: the text can't be used: sentence is null"):
        find_recordings(tmp_path / "one")
    kept = find_recordings(tmp_path / "one", keeps_faults=True)
    assert [recording.fault for recording in kept] == [None, ("text", "sentence is null, not a text")]


def test_a_manifest_has_no_splits(tmp_path):
    save(tmp_path / "m.jsonl", '{"audio_filepath": "a.flac", "text": "x", "lang": "en"}')
    with pytest.raises(DataError, match="has no splits"):
        names(tmp_path / "m.jsonl", "train")
