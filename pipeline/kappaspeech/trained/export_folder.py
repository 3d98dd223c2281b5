"""The folder of an export: it appears whole, if there is room for it, or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kappaspeech.artefacts import sync_folder
from kappaspeech.errors import InputError

# the files beside the tensors (tokenizer, JSON) are smaller than this
_SMALL_FILES_BYTES = 64 << 20


def write_folder(output: Path, write: Callable[[Path], None], *, num_bytes: int) -> list[Path]:
    """Let `write` fill a temporary sibling of `output` and rename it, if there is room for it.

    Raises `InputError` if `output` exists, if another process is writing it, or for a disk that is full.
    """
    _refuse_existing(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    needed, free = num_bytes + _SMALL_FILES_BYTES, shutil.disk_usage(output.parent).free
    if free < needed:
        raise InputError(
            f"The export needs {needed / 1e9:.2f} GB in {output.parent}, where {free / 1e9:.2f} GB are free. Make room, give "
            "another folder, or export the difference alone: --only difference."
        )
    with _temporary_sibling(output) as temporary:
        # another process may have made it by now
        _refuse_existing(output)
        try:
            write(temporary)
        except OSError as error:
            raise InputError(f"{output} can't be written: {error}. Nothing of it was kept.") from error
        temporary.rename(output)
    sync_folder(output.parent)
    return sorted(output.iterdir())


def _refuse_existing(output: Path) -> None:
    if output.exists():
        raise InputError(f"{output} exists already. Give a folder that doesn't, or remove it.")


@contextmanager
def _temporary_sibling(output: Path) -> Iterator[Path]:
    temporary = output.with_name(f".{output.name}.tmp")
    descriptor = _claim(temporary, output)
    try:
        # what a kill left
        for left in temporary.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        # after a rename another process may have made a folder of this name
        os.close(descriptor)


def _claim(temporary: Path, output: Path) -> int:
    """Make the folder if it isn't there, and lock it: a descriptor that keeps it from others until it is closed."""
    while True:
        temporary.mkdir(exist_ok=True)
        try:
            descriptor = os.open(temporary, os.O_RDONLY)
        except FileNotFoundError:
            continue  # another process was ready just now
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise InputError(f"{output} is being written by another process. Wait for it, or give another folder.") from None
        except OSError:
            return descriptor  # a file system without locks
        if temporary.exists() and os.path.samestat(os.fstat(descriptor), temporary.stat()):
            return descriptor
        os.close(descriptor)
