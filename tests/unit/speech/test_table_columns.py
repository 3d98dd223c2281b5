"""A table's columns of text and language, and its rows' texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from kappaspeech.errors import DataError
from kappaspeech.speech.recordings import Recording, Request
from kappaspeech.speech.table_columns import name_columns, with_text

TABLE = Path("table")


def test_columns_are_found_and_a_language_that_is_given_needs_none():
    columns = ["audio", "sentence", "locale"]
    assert name_columns(TABLE, columns, Request()) == ("sentence", "locale")
    assert name_columns(TABLE, columns, Request(language="de")) == ("sentence", None)
    with pytest.raises(DataError, match=r"table has no column of text .*it has audio, locale.*--text-column"):
        name_columns(TABLE, ["audio", "locale"], Request())
    with pytest.raises(DataError, match=r"table has no column that names the language; give it with --language"):
        name_columns(TABLE, ["audio", "sentence"], Request())


def test_a_text_that_is_none_is_told_or_kept_as_a_fault():
    recording = Recording("en/1", TABLE, "", "en", row=1)
    assert with_text(recording, "sentence", " said ", Request()).transcript == "said"
    with pytest.raises(DataError, match="the text can't be used: sentence is null"):
        with_text(recording, "sentence", None, Request())
    assert with_text(recording, "sentence", None, Request(keeps_faults=True)).fault == ("text", "sentence is null, not a text")
