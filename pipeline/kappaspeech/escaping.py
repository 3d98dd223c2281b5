"""Names from files are data: a function for each way out makes them harmless there, and still shows what they were."""

from __future__ import annotations

import logging
import re
from typing import Any

from kappaspeech.redaction import redact

_MAX_NAME, _MAX_LABEL = 200, 50
# what a terminal obeys, what reorders or breaks a line, and halves of surrogate pairs
_UNSHOWABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
_FORMULA = re.compile(r"[=+\-@\t\r]")


def for_terminal(text: str) -> str:
    """`text` without the secrets of URLs, and with what a terminal would obey or can't encode as backslash escapes.

    Line feeds and tabs stay.
    """
    return _UNSHOWABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), redact(text))


def for_json(text: str, encoding: str | None = None) -> str:
    """JSON on its way to a terminal or a pipe: what a terminal would obey, and what its `encoding` lacks, as JSON's own escapes.

    Line feeds and tabs stay.
    """
    shown = _UNSHOWABLE.sub(lambda match: _json_escape(match[0]), text)
    try:
        shown.encode(encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return re.sub("[^\x00-\x7f]", lambda match: _json_escape(match[0]), shown)
    return shown


def for_line(name: str) -> str:
    """A name within a line or a table's cell: as `for_terminal`, on one line, its middle left out if it is very long."""
    return _clip(for_column(name), _MAX_NAME)


def for_column(text: str) -> str:
    """A value of a line that programs read, between its tabs: as `for_terminal`, on one line, and whole."""
    return for_terminal(text).replace("\n", "\\n").replace("\t", "\\t")


class _ForTerminal(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = for_terminal(record.getMessage()), None
        return True


def make_logger(module: str) -> logging.Logger:
    """A module's logger, whose lines are as `for_terminal` leaves them, whoever takes them: a terminal, a file, a collector."""
    logger = logging.getLogger(module)
    logger.addFilter(_ForTerminal())
    return logger


def for_table(value: Any) -> Any:
    """A cell of a rich table, whose square brackets aren't markup."""
    from rich.text import Text

    return Text(for_line(str(value)))


def for_picture(name: str) -> str:
    """A label of matplotlib's, whose dollars aren't mathematics."""
    return _clip(for_line(name), _MAX_LABEL).replace("$", r"\$")


def for_cell(value: Any) -> Any:
    """A cell of a spreadsheet: text that would be taken for a formula has an apostrophe before it."""
    if not isinstance(value, str):
        return value
    text = for_column(value)
    return f"'{text}" if _FORMULA.match(text) else text


def encodable(name: str) -> str:
    """A name as UTF-8 can hold it. A path may hold bytes that are no text: they become backslash escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") if _has_bytes(name) else name


def _json_escape(letter: str) -> str:
    """A letter as JSON writes one that it doesn't spell out: its one or two units of UTF-16."""
    units = letter.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[first : first + 4]}" for first in range(0, len(units), 4))


def _clip(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 2 :]}"


def _has_bytes(name: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in name)
