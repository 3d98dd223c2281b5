"""What commands print on: any terminal, encoding, pipe or disk, with an end for each that is no traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import typer

from pipeline.errors import InputError
from pipeline.outside import describe


@contextmanager
def safe_output() -> Iterator[None]:
    """Let every letter be printed, as an escape where the terminal's encoding lacks it, and have all of it out at the end.

    Raises `InputError` where standard output takes no more; a reader that has gone away (`| head`) isn't told of.
    """
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if not _is_broken(sys.stdout):
            raise
        _silence(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise typer.Exit(1) from None
        raise InputError(f"Standard output can't be written: {describe(error)}.") from error


def _is_broken(stream: Any) -> bool:
    """Whether what is left in a stream can't be written. What was written before goes out in asking."""
    if stream is None:
        return False
    try:
        stream.flush()
    except (OSError, ValueError):
        return True
    return False


def _silence(stream: Any) -> None:
    """Let what is left go nowhere: the interpreter would try again at its end, and complain."""
    with suppress(OSError, ValueError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)
