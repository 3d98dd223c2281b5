"""A checkpoint in the making: all ranks write into a hidden folder, in the background, and one rename makes it a checkpoint."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kappaspeech.artefacts import sync_folder, write_json
from kappaspeech.errors import RankFailure, TrainingError
from kappaspeech.ranks.agreement import agree, agreement, is_agreed
from kappaspeech.ranks.cluster import Cluster
from kappaspeech.runs.checkpoints import SCHEMA_VERSION, STATE_FILE, prune
from kappaspeech.runs.checksums import Span, join
from kappaspeech.runs.contents import checkpoint_path
from kappaspeech.runs.share_writer import Piece, ShareWriter
from kappaspeech.tensor_files.safetensors_writer import Layout

_MARK_FILE = "mark"


@dataclass(frozen=True)
class NewCheckpoint:
    """The checkpoint of `step` in a run's `folder` of checkpoints. `state` is JSON, and mustn't change until it is whole.

    Rank 0 calls `check`, which raises if nothing may be written, before it begins and before the rename, and `on_whole` after
    that. Then all but the newest `keep` and the one marked as best are removed.
    """

    folder: Path
    step: int
    state: Mapping[str, Any]
    keep: int
    check: Callable[[], None] = lambda: None
    on_whole: Callable[[], None] = lambda: None

    @property
    def target(self) -> Path:
        return checkpoint_path(self.folder, self.step)

    @property
    def temporary(self) -> Path:
        return self.folder / f".{self.target.name}.tmp"

    def begin(self, cluster: Cluster, layouts: Mapping[str, Layout]) -> list[int]:
        """Make the files in their full size, without the tensors; return the ranks that can write into them. A collective.

        Rank 0 can; ranks on hosts that don't share its file system can't. Raises `TrainingError` if rank 0 can't either.
        """

        def make() -> str | None:
            if cluster.rank != 0:
                return None
            self.check()
            with explaining(self.target):
                try:
                    return self._make(layouts)
                except OSError:
                    self._remove()
                    raise

        mark = agree(cluster, make)[0]
        return [rank for rank, sees in enumerate(cluster.gather(self._sees(mark))) if sees]

    def _make(self, layouts: Mapping[str, Layout]) -> str:
        """Make the files, and leave a mark by which a rank knows that it sees this very folder."""
        _check_space(self.folder, sum(layout.num_bytes for layout in layouts.values()))
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(parents=True)
        for name, layout in layouts.items():
            with (self.temporary / name).open("wb") as file:
                file.write(layout.head)
                file.truncate(layout.num_bytes)
                # each rank makes durable what it writes, and rank 0 may own no tensor of this file
                file.flush()
                os.fsync(file.fileno())
        mark = secrets.token_hex()
        (self.temporary / _MARK_FILE).write_text(mark, encoding="ascii")
        return mark

    def _sees(self, mark: str | None) -> bool:
        try:
            return (self.temporary / _MARK_FILE).read_text(encoding="ascii") == mark
        except (OSError, ValueError):
            return False

    def end(self, cluster: Cluster, share: ShareWriter, pieces: deque[Piece], layouts: Mapping[str, Layout]) -> None:
        """Write this rank's `pieces`, and once all ranks have, give the folder its name. A collective.

        Raises `TrainingError` on every rank if one couldn't write; older checkpoints are then untouched, and what was written is
        removed.
        """

        def write() -> dict[str, Any]:
            with explaining(self.target):
                share.write(pieces)
                return share.finish()

        try:
            shares = agree(cluster, write)
            with agreement(cluster), explaining(self.target):
                if cluster.rank == 0:
                    self._become_whole({name: _describe(layout, name, shares) for name, layout in layouts.items()})
        except Exception as error:
            # if not all ranks know of it, another may be writing still
            if cluster.rank == 0 and (is_agreed(error) or isinstance(error, RankFailure)):
                self._remove()
            raise

    def _remove(self) -> None:
        """Remove the unfinished folder, unless another start has the run's folder by now."""
        with suppress(TrainingError, OSError):
            self.check()
            shutil.rmtree(self.temporary, ignore_errors=True)

    def _become_whole(self, files: Mapping[str, Mapping[str, int]]) -> None:
        self.check()
        (self.temporary / _MARK_FILE).unlink()
        state = {"schema_version": SCHEMA_VERSION, "step": self.step, **self.state, "files": files}
        write_json(self.temporary / STATE_FILE, state)
        self.temporary.rename(self.target)
        sync_folder(self.folder)
        self.on_whole()
        prune(self.folder, keep=self.keep)


def _describe(layout: Layout, name: str, shares: Sequence[Mapping[str, Sequence[Span]]]) -> dict[str, int]:
    """A file's size, and the checksum of its tensors, of which each rank has summed up some."""
    whole = join(span for spans in shares for span in spans.get(name, ()))
    assert (whole.begin, whole.end) == (len(layout.head), layout.num_bytes), f"of {name}, {whole} was written"
    return {"num_bytes": layout.num_bytes, "crc32": whole.crc32}


class Writing:
    """The end of a checkpoint in a thread of its own. `progress` moves for as long as something is written."""

    def __init__(self, end: Callable[[], None], share: ShareWriter) -> None:
        self._share = share
        self._future: Future[None] = Future()

        def work() -> None:
            try:
                end()
                self._future.set_result(None)
            except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                self._future.set_exception(error)

        threading.Thread(target=work, name="checkpoint", daemon=True).start()

    @property
    def progress(self) -> int:
        return self._share.num_written

    @property
    def is_done(self) -> bool:
        return self._future.done()

    def wait(self, seconds: float) -> bool:
        """Return whether it is done, waiting so long at most."""
        return bool(wait([self._future], timeout=seconds).done)

    def failure(self) -> BaseException | None:
        """The error that ended the writing, once it is done; None if the checkpoint is whole."""
        return self._future.exception()


@contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Turn an `OSError` of writing a checkpoint into a `TrainingError` that names it, and says what is safe."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{path} can't be written: {error}. Older checkpoints beside it are whole: make room or mend the disk, and start the "
            "same command again."
        ) from error


def _check_space(folder: Path, needed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise TrainingError(
            f"A checkpoint needs {needed / 1e9:.3g} GB in {folder}, where {free / 1e9:.3g} GB are free. Make room and start the "
            "same command again: it continues from the last checkpoint."
        )
