"""Languages' names become parts of file names: one short word, from wherever they come."""

from __future__ import annotations

import json

import pytest

from kappaspeech.commands import main
from kappaspeech.errors import DataError
from kappaspeech.speech.languages import normalise_language, short_language
from tests.speech_files import clip, make_tar, save

NOT_A_LANGUAGE = [
    "../../evil",
    "/tmp/evil",
    "en/../../evil",
    "..",
    "..x",
    "a\0b",
    "x" * 300,
    "en US;rm -rf",
    "a\\b",
    "",
    5,
    ["en"],
]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("dutch", "nl"),
        ("Polish", "pl"),
        ("portuguese_opus", "pt"),
        ("zh-Hant-TW", "zh"),
        ("yue", "yue"),
        ("en_US.UTF-8", "en"),
        ("x-klingon", "x-klingon"),
        ("generated", "generated"),
    ],
)
def test_names_codes_and_words_of_ones_own_are_languages(name, short):
    assert normalise_language(name) == short


@pytest.mark.parametrize("name", NOT_A_LANGUAGE)
def test_what_could_be_a_path_is_no_language(name):
    with pytest.raises(DataError, match=r"^here: .* is no language"):
        normalise_language(name, where="here")


@pytest.mark.parametrize("name", ["../../evil", "/tmp/kappaspeech-evil", "a\0b"])
def test_no_field_of_a_manifest_becomes_a_path(tmp_path, name, capsys):
    save(tmp_path / "a.flac", clip(1.0))
    save(tmp_path / "m.jsonl", json.dumps({"audio_filepath": "a.flac", "text": "x", "lang": name}))
    before = set(tmp_path.rglob("*"))
    assert main(["pack", str(tmp_path / "m.jsonl"), str(tmp_path / "deep/er/shards"), "--workers", "1"]) == 2
    assert "line 1: " in capsys.readouterr().err
    assert set(tmp_path.rglob("*")) == before


def test_no_locale_of_common_voice_becomes_a_path(tmp_path, capsys):
    save(tmp_path / "cv/clips/a.flac", clip(1.0))
    save(tmp_path / "cv/train.tsv", "path\tsentence\tlocale\na.flac\thi\t../../evil\n")
    assert main(["pack", str(tmp_path / "cv"), str(tmp_path / "shards"), "--workers", "1"]) == 2
    assert "train.tsv, line 2: '../../evil' is no language" in capsys.readouterr().err


def test_no_language_of_a_shard_made_by_others_is_taken_unseen(tmp_path, capsys):
    for name, said in (("../../evil", "is no language"), (["en"], "is no language")):
        content = json.dumps({"text": "x", "language": name, "duration": 0.5}).encode()
        tar = make_tar(tmp_path / "x.tar", [("a.flac", clip(0.5)), ("a.json", content)])
        assert main(["index", str(tar)]) == 2
        assert said in capsys.readouterr().err


def test_what_cannot_be_a_language_stays_where_it_is_only_looked_for():
    assert [short_language(name) for name in ("german", "de_DE", "x-klingon", "a b")] == ["de", "de", "x-klingon", "a b"]
