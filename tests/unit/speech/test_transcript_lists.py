"""Folders with a transcripts.tsv each: no list is hidden by another."""

from __future__ import annotations

from pathlib import Path

import pytest

from kappaspeech.errors import DataError
from kappaspeech.speech.layouts import find_recordings
from kappaspeech.speech.transcript_lists import TRANSCRIPTS_NAME
from tests.speech_files import save


def write(folder: Path, *files: str, text: str = "text") -> None:
    """A folder of recordings and their list."""
    save(folder / TRANSCRIPTS_NAME, "".join(f"{file}\t{text}\n" for file in files))
    for file in files:
        save(folder / file, b"x")


def keys(source: Path, **options: str | None) -> dict[str, str]:
    return {recording.key: recording.language for recording in find_recordings(source, **options)}


def test_a_list_in_a_folder_hides_none_below_it(tmp_path):
    root = tmp_path / "de"
    write(root, "000.flac")
    write(root / "en", "000.flac")
    write(root / "german", "001.flac")
    write(root / "en/second", "000.flac")
    found = {"de/000": "de", "en/000": "en", "de/001": "de", "en/second/000": "en"}
    assert keys(root) == found
    # from above de and en both name a language
    with pytest.raises(DataError, match=r"de/en/second names several languages \(de, en\); give it with --language"):
        find_recordings(tmp_path)
    assert keys(root, language="fr") == {f"fr/{name}": "fr" for name in ("000", "en/000", "german/001", "en/second/000")}


def test_a_list_of_all_beside_folders_of_languages_is_asked_for_its_own(tmp_path):
    write(tmp_path / "mine", "000.flac")
    write(tmp_path / "mine/de", "000.flac")
    with pytest.raises(DataError, match=r"mine doesn't say what language.*--language.*or move transcripts\.tsv"):
        find_recordings(tmp_path / "mine")
    save(tmp_path / "mine/de/transcripts.tsv", "")
    assert keys(tmp_path / "mine", language="fr") == {"fr/000": "fr"}


def test_a_folder_of_a_speaker_beside_a_list_is_of_no_language_of_its_own(tmp_path):
    write(tmp_path / "de", "000.flac")
    write(tmp_path / "de/speaker1", "000.flac")
    with pytest.raises(DataError, match="speaker1 doesn't say what language it is; give it with --language"):
        find_recordings(tmp_path / "de")
    assert keys(tmp_path / "de", language="de") == {"de/000": "de", "de/speaker1/000": "de"}


def test_a_recording_in_two_lists_is_told(tmp_path):
    write(tmp_path / "de/en", "000.flac")
    write(tmp_path / "de", "en/000.flac")
    with pytest.raises(DataError, match=r"de/en/000\.flac is in two lists, .*de/en/transcripts\.tsv and .*remove the list"):
        find_recordings(tmp_path / "de")


def test_lists_beside_splits_and_of_splits_of_a_language_are_read_and_test_is_held_out(tmp_path):
    root = tmp_path / "de"
    write(root, "000.flac")
    for split in ("train", "test"):
        write(root / split, f"{split}.flac")
        write(root / "en" / split, f"{split}.flac")
    assert keys(root) == {"de/000": "de", "de/train": "de", "en/train": "en"}
    assert keys(root, split="test") == {"de/test": "de", "en/test": "en"}
    assert keys(root / "en", split="test") == {"en/test": "en"}
    with pytest.raises(DataError, match="no split 'dev'; it has de, test, train"):
        find_recordings(root, split="dev")


def test_a_list_that_names_recordings_of_a_split_that_is_held_out_is_told(tmp_path):
    root = tmp_path / "de"
    write(root / "test", "a.flac")
    write(root, "000.flac", "test/a.flac")
    with pytest.raises(DataError, match=r"test/a\.flac, which lies in .*de/test, another split"):
        find_recordings(root)
    assert set(keys(root, split="test")) == {"de/a"}


def test_the_name_of_a_split_is_no_language(tmp_path):
    write(tmp_path / "dev", "000.flac")
    with pytest.raises(DataError, match="dev doesn't say what language it is"):
        find_recordings(tmp_path / "dev")


def test_hidden_lists_are_none_and_a_list_that_is_linked_is_read_once(tmp_path):
    write(tmp_path / "all/de", "000.flac")
    write(tmp_path / "all/de/.trash", "001.flac")
    (tmp_path / "all/en").symlink_to(tmp_path / "all/de")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/de").symlink_to(tmp_path / "all/de")
    assert set(keys(tmp_path / "all")) == set(keys(tmp_path / "linked")) == {"de/000"}
