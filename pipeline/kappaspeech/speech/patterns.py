"""Names of shards: brace lists, globs, URLs with a query, and the files beside a shard. Pure."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator

from kappaspeech.errors import DataError
from kappaspeech.speech.source import scheme_of

# Each is a file with an index; a list that is longer is a slip of the finger.
MAX_SHARDS = 1_000_000
_MAX_LETTERS = 1 << 30
_MAX_DEPTH = 20
_NUMBERS = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.-?(\d{1,18}))?")
_LETTERS = re.compile(r"[A-Za-z]\.\.[A-Za-z](?:\.\.-?\d{1,18})?")
_LONG_NUMBERS = re.compile(r"-?\d+\.\.-?\d+(?:\.\.-?\d+)?")
_MOST_LETTERS = 52


def expand_braces(pattern: str) -> Iterator[str]:
    """Yield each string of a brace list, after counting them. Raises `DataError`."""
    from braceexpand import braceexpand

    try:
        count = _count(pattern, depth=0)
        if count > MAX_SHARDS or count * len(pattern) > _MAX_LETTERS:
            raise DataError(f"{_shown(pattern)} stands for {count:,} shards; at most {MAX_SHARDS:,} are read as one data set.")
        return iter(braceexpand(pattern))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{_shown(pattern)} is no brace list ({error}). Write shard-{{000000..000041}}.tar or {{a,b}}.tar."
        ) from error


def _shown(pattern: str) -> str:
    return pattern if len(pattern) <= 200 else f"{pattern[:100]}…{pattern[-60:]}"


def _count(pattern: str, *, depth: int) -> int:
    """Count the strings that `braceexpand` makes of a pattern. Raises `ValueError` if they don't match, or nest too deeply."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"braces are nested more than {_MAX_DEPTH} deep")
    total = 1
    for inside in _groups(pattern):
        numbers = _NUMBERS.fullmatch(inside)
        if numbers is not None:
            step = int(numbers[3] or 1) or 1
            total *= abs(int(numbers[2]) - int(numbers[1])) // step + 1
        elif _LETTERS.fullmatch(inside):
            total *= _MOST_LETTERS
        elif _LONG_NUMBERS.fullmatch(inside):
            raise ValueError("a number in it has more than 18 digits")
        else:
            total *= sum(_count(part, depth=depth + 1) for part in _parts(inside))
    return total


def _groups(pattern: str) -> Iterator[str]:
    """The content of each outermost pair of braces."""
    depth = start = 0
    for place, letter in _unescaped(pattern):
        if letter == "{":
            depth += 1
            start = place + 1 if depth == 1 else start
        elif letter == "}":
            depth -= 1
            if depth < 0:
                break
            if depth == 0:
                yield pattern[start:place]
    if depth:
        raise ValueError("a brace has no partner")


def _parts(inside: str) -> list[str]:
    """A group's alternatives."""
    cuts, depth = [-1], 0
    for place, letter in _unescaped(inside):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            cuts.append(place)
    return [inside[begin + 1 : end] for begin, end in zip(cuts, [*cuts[1:], len(inside)], strict=True)]


def _unescaped(pattern: str) -> Iterator[tuple[int, str]]:
    """The braces and commas without a backslash before them."""
    for found in re.finditer(r"\\.|[{},]", pattern, re.DOTALL):
        if len(found[0]) == 1:
            yield found.start(), found[0]


def has_glob(pattern: str) -> bool:
    """Return whether a pattern without braces names several files. In a web address ? begins the query, and [ an IPv6 host."""
    if scheme_of(pattern) in ("http", "https"):
        path = pattern.partition("://")[2].partition("/")[2]
        return glob.has_magic(_without_query(path))
    return glob.has_magic(pattern)


def _without_query(url: str) -> str:
    return re.split(r"[?#]", url, maxsplit=1)[0]


def beside(where: str, suffix: str) -> str:
    """The name of a shard with `suffix` added; in a web address it comes before the query."""
    if scheme_of(where) not in ("http", "https"):
        return where + suffix
    path = _without_query(where)
    return path + suffix + where[len(path) :]


def shard_name(where: str) -> str:
    """A shard's own name, without its folder and without a query, which may be a signature that changes from day to day."""
    return (_without_query(where) if scheme_of(where) in ("http", "https") else where).rsplit("/", 1)[-1]
