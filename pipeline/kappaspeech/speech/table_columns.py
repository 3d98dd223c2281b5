"""Tables with a recording in each row, whatever holds them: the columns of text and language, and a row's text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kappaspeech.errors import DataError
from kappaspeech.speech.recordings import Recording, Request
from kappaspeech.speech.text_files import LANGUAGE_KEYS, find_text


def name_columns(source: Path, columns: Sequence[str], request: Request) -> tuple[str, str | None]:
    """The columns of a table's text and language; None for a language that the request gives. Raises `DataError`."""
    text = next((name for name in request.text_keys if name in columns), None)
    language = next((name for name in LANGUAGE_KEYS if name in columns), None)
    if text is None:
        wanted, there = ", ".join(request.text_keys), ", ".join(columns)
        raise DataError(f"{source} has no column of text ({wanted}); it has {there}. Name one of these with --text-column.")
    if request.language is None and language is None:
        raise DataError(f"{source} has no column that names the language; give it with --language.")
    return text, None if request.language else language


def with_text(recording: Recording, column: str, transcript: object, request: Request) -> Recording:
    """The recording of a table's row with its text, or judged by the request. Raises `DataError`."""
    try:
        content = find_text({column: transcript}, (column,))
    except ValueError as error:
        return request.judge(recording, ("text", str(error)), f"{recording.name}: the text can't be used: {error}.")
    return replace(recording, transcript=content.strip())
