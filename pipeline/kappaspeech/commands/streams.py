"""Standard output and error on any terminal, encoding, pipe or disk; none of them ends a command in a traceback.

They are the user's: what libraries say to developers is left out.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import typer

from kappaspeech.errors import InputError
from kappaspeech.outside import describe


@contextmanager
def safe_output() -> Iterator[None]:
    """Let every letter be printed, as an escape if the terminal's encoding lacks it, and flush all of it at the end.

    A closed stream takes whatever comes. Raises `InputError` if standard output takes no more; a reader that has gone away
    (`| head`) isn't reported.
    """
    before = sys.stdout, sys.stderr
    with ExitStack() as nowhere:
        # what a shell has closed (>&-) is None
        out, err = (stream or nowhere.enter_context(open(os.devnull, "w", encoding="utf-8")) for stream in before)
        for stream in (out, err):
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:
                reconfigure(errors="backslashreplace")
        sys.stdout, sys.stderr = _Told(out), err
        try:
            yield
            sys.stdout.flush()
        finally:
            sys.stdout, sys.stderr = before


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Leave out warnings of libraries, which are for developers. `PYTHONWARNINGS=default`, or python -W, brings them back.

    A variable of a library that the user has set counts.
    """
    # transformers' own logger, and torch's, whose C++ stack on a lost connection the watch says in one line
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        yield


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
