"""Removal of secrets in URLs from every text that leaves the program.

A URL's user and password, and its query, which may be a signature, are secrets whatever its scheme. Errors, findings and records
pass here, so that no message, log or report holds them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
# beside a run folder's config.json, which holds no secret: what it hides, for its owner's eyes
SECRETS_FILE = "secrets.json"
# what a URL ends at in running text
_END = r"\s\"'<>«»`\\"
_USER = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^/?#\s]*@")
# s3 and gs take ? for any letter: only "name=value" is a query there
_QUERY = re.compile(
    rf"(?P<url>(?:(?P<web>https?)|[A-Za-z][A-Za-z0-9+.-]*)://[^?{_END}]*)\?"
    rf"(?(web)[^{_END}]*[^{_END}.,:;)\]}}]|[^={_END}]*=[^{_END}]*[^{_END}.,:;)\]}}])",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """`text` with the user, password and query of every URL in it hidden; any other text as it is."""
    if "://" not in text:
        return text
    return _QUERY.sub(rf"\g<url>?{HIDDEN}", _USER.sub(rf"\g<scheme>{HIDDEN}@", text))


def redact_values(value: Any) -> Any:
    """A JSON value with every string as `redact` leaves it."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: redact_values(item) for key, item in value.items()}
    return [redact_values(item) for item in value] if isinstance(value, list | tuple) else value


def is_redacted(where: str) -> bool:
    """True if a URL's secrets have been hidden, so that nothing can be requested by it."""
    return "://" in where and HIDDEN in where


def find_secrets(value: Any, place: str = "") -> dict[str, str]:
    """The strings of a JSON value that `redact` changes, by the dotted place of each."""
    if isinstance(value, str):
        return {place: value} if redact(value) != value else {}
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    found: dict[str, str] = {}
    for key, item in items:
        found |= find_secrets(item, f"{place}.{key}" if place else str(key))
    return found


def restore_secrets(value: Any, secrets: Mapping[str, str], place: str = "") -> Any:
    """A JSON value with what `find_secrets` found put back, if the string there is still the one that was hidden."""
    if isinstance(value, str):
        whole = secrets.get(place)
        return whole if isinstance(whole, str) and redact(whole) == value else value
    inner = f"{place}." if place else ""
    if isinstance(value, Mapping):
        return {key: restore_secrets(item, secrets, f"{inner}{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [restore_secrets(item, secrets, f"{inner}{number}") for number, item in enumerate(value)]
    return value
