"""The folder of an export: it appears whole, if there is room for it, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kappaspeech.artefacts import sync_folder
from kappaspeech.errors import InputError

# the files beside the tensors (tokenizer, JSON) are smaller than this
_SMALL_FILES_BYTES = 64 << 20


def write_folder(output: Path, write: Callable[[Path], None], *, num_bytes: int) -> list[Path]:
    """Let `write` fill a temporary sibling of `output` and rename it, if there is room for it."""
    if output.exists():
        raise InputError(f"{output} exists already. Give a folder that doesn't, or remove it.")
    output.parent.mkdir(parents=True, exist_ok=True)
    needed, free = num_bytes + _SMALL_FILES_BYTES, shutil.disk_usage(output.parent).free
    if free < needed:
        raise InputError(
            f"The export needs {needed / 1e9:.2f} GB in {output.parent}, where {free / 1e9:.2f} GB are free. Make room, give "
            "another folder, or export the difference alone: --only difference."
        )
    with _temporary_sibling(output) as temporary:
        try:
            write(temporary)
        except OSError as error:
            raise InputError(f"{output} can't be written: {error}. Nothing of it was kept.") from error
        temporary.rename(output)
    sync_folder(output.parent)
    return sorted(output.iterdir())


@contextmanager
def _temporary_sibling(output: Path) -> Iterator[Path]:
    temporary = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
