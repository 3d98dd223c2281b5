"""Lists without transcripts, as their corpora have them."""

from __future__ import annotations

import pytest

from kappaspeech.errors import DataError
from kappaspeech.speech.untranscribed import is_table, list_untranscribed


def test_a_table_of_common_voice_is_read_by_its_columns(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/a.mp3").write_bytes(b"x")
    (tmp_path / "test.tsv").write_text("client_id\tpath\tsentence\tlocale\n1\ta.mp3\tHallo\tde\n")
    (recording,) = list_untranscribed(tmp_path / "test.tsv")
    assert recording.path == tmp_path / "clips/a.mp3"
    assert recording.language == "de"


@pytest.mark.parametrize(
    ("table", "file", "language"),
    [
        ("path\tlocale\na.mp3\tde\n", "clips/a.mp3", "de"),
        ("clip\tduration[ms]\na.mp3\t1200\n", "clips/a.mp3", "en"),
        ("Path\tlanguage\na\tGerman\n", "clips/a.mp3", "de"),
        ("audio_filepath\nother/b.wav\n", "other/b.wav", "en"),
    ],
)
def test_another_table_beside_those_clips_is_read_by_the_column_that_names_files(tmp_path, table, file, language):
    corpus = tmp_path / "en"
    (corpus / "clips").mkdir(parents=True)
    (corpus / "mine.tsv").write_text(table)
    (recording,) = list_untranscribed(corpus / "mine.tsv")
    assert (recording.path, recording.language) == (corpus / file, language)


@pytest.mark.parametrize(("folder", "language"), [("my-clips", ""), ("cv-corpus-17.0", ""), ("sv-SE", "sv"), ("deu", "de")])
def test_a_folders_name_is_a_language_only_if_it_is_written_as_one(tmp_path, folder, language):
    (tmp_path / folder / "clips").mkdir(parents=True)
    (tmp_path / folder / "mine.tsv").write_text("clip\na.mp3\n")
    assert list_untranscribed(tmp_path / folder / "mine.tsv")[0].language == language


@pytest.mark.parametrize(("table", "says"), [("id\tsentence\n1\tx\n", "its first line has: id, sentence"), ("", "no column")])
def test_a_table_that_names_no_files_is_refused_with_the_names_that_are_known(tmp_path, table, says):
    (tmp_path / "clips").mkdir()
    (tmp_path / "mine.tsv").write_text(table)
    with pytest.raises(DataError, match=says):
        list_untranscribed(tmp_path / "mine.tsv")


def test_a_line_without_a_file_is_refused_by_its_number(tmp_path):
    table = tmp_path / "t.tsv"
    table.write_text("a.wav\n\n\tno file\n")
    assert is_table(table)
    with pytest.raises(DataError, match="line 3 names no file"):
        list_untranscribed(table)
