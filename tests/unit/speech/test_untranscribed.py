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


def test_a_line_without_a_file_is_refused_by_its_number(tmp_path):
    table = tmp_path / "t.tsv"
    table.write_text("a.wav\n\n\tno file\n")
    assert is_table(table)
    with pytest.raises(DataError, match="line 3 names no file"):
        list_untranscribed(table)
