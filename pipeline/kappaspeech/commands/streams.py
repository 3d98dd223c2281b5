"""Standard output and error on any terminal, encoding, pipe or disk; none of them ends a command in a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import typer

from kappaspeech.errors import InputError
from kappaspeech.outside import describe


@contextmanager
def safe_output() -> Iterator[None]:
    """Let every letter be printed, as an escape where the terminal's encoding lacks it, and have all of it out at the end.

    Raises `InputError` where standard output takes no more; a reader that has gone away (`| head`) isn't told of.
    """
    before = sys.stdout
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    if before is not None:
        sys.stdout = _Told(before)
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    finally:
        sys.stdout = before


class _Told:
    """A stream whose faults aren't taken for those of files."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with _telling(self._stream):
            return int(self._stream.write(text))

    def flush(self) -> None:
        with _telling(self._stream):
            self._stream.flush()


@contextmanager
def _telling(stream: Any) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        _silence(stream)
        raise typer.Exit(1) from None
    except OSError as error:
        _silence(stream)
        raise InputError(f"Standard output can't be written: {describe(error)}.") from error


def _silence(stream: Any) -> None:
    """Let what is left go nowhere: the interpreter would try again at its end, and complain."""
    with suppress(OSError, ValueError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)
