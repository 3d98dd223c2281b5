"""PyTorch's Flight Recorder: the last collectives of each rank, written into the run folder when ranks wait for each other.

PyTorch's reader takes a folder with a file a rank, whose names end with the rank's number. In gloo's files it misses the ranks of
each group, so these are read as the pickles that they are.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from kappaspeech.escaping import make_logger
from kappaspeech.outputs import write_with

# PyTorch's names, the present one first
_SIZE = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
_FILE = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
_ON_TIMEOUT = "TORCH_NCCL_DUMP_ON_TIMEOUT"
# what later versions of PyTorch have by default
_NUM_COLLECTIVES = "2000"
# the functions of PyTorch that give a backend's records, some of which a build lacks
_DUMPS = {"gloo": "_dump_fr_trace", "nccl": "_dump_nccl_trace"}
_READERS = {
    "gloo": "python -m pickle {}/gloo_rank_*",
    "nccl": "torchfrtrace {} -p nccl_rank_ --allow-incomplete-ranks",
}
_log = make_logger(__name__)


@contextmanager
def recording(folder: Path, environment: MutableMapping[str, str]) -> Iterator[None]:
    """Let PyTorch record, and write NCCL's timeouts into `folder`, for as long as the context is open; open it before ranks meet.

    What the user has set stays; what is set here is gone afterwards, or another training in this process would take it for that.
    """
    added: list[str] = []
    for names, value in ((_SIZE, _NUM_COLLECTIVES), (_FILE, f"{folder.absolute()}/nccl_timeout_rank_"), ((_ON_TIMEOUT,), "1")):
        if not any(name in environment for name in names):
            environment.update(dict.fromkeys(names, value))
            added.extend(names)
    try:
        yield
    finally:
        for name in added:
            environment.pop(name, None)


def make_room(folder: Path) -> None:
    """Make the folder if ranks use NCCL, which makes none. For one rank alone."""
    import torch.distributed

    if torch.distributed.get_backend() == "nccl":
        folder.mkdir(parents=True, exist_ok=True)


def dump(folder: Path, rank: int) -> list[str]:
    """Write this rank's last collectives into `folder`, a file a backend; the names of the backends. No collective."""
    from torch._C import _distributed_c10d

    written = []
    for backend, function in _DUMPS.items():
        take = getattr(_distributed_c10d, function, None)
        if take is None:
            continue
        try:
            write_with(folder / f"{backend}_rank_{rank}", partial(_put, take()))
            written.append(backend)
        except (OSError, RuntimeError) as error:
            _log.warning("The collectives of rank %d (%s) can't be written: %s", rank, backend, error)
    return written


def tell_reader(folder: Path, backends: list[str]) -> str:
    """A line that names the files and the command that reads them; ranks that have ended left none."""
    commands = " and ".join(f"`{_READERS[backend].format(shlex.quote(str(folder)))}`" for backend in backends)
    return f"each rank's last collectives are in {folder}: {commands}"


def _put(content: bytes, path: Path) -> None:
    path.write_bytes(content)
