"""Outputs: a regular file appears whole or not at all, anything else is written through; and words for failures to write."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# standard output and other open files by a path: what they lead to is written to, never replaced
_DESCRIPTOR = re.compile(r"/dev/(fd/\d+|stdout|stderr)|/proc/(self|\d+)/fd/\d+")
_LEFTOVER = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")
# libraries that write by themselves have the system's error in their words: safetensors' "(os error 28)"
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
_LONGEST_NAME_BYTES = 200
_PROBE_BYTES = 4096
# if locks can't be had, what is so old is nobody's
_STALE_SECONDS = 86_400.0
_NO_SYNC = (errno.EINVAL, errno.EACCES, errno.ENOTSUP, errno.EBADF)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
_LACK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FAULTS = (*_LACK, errno.EIO, errno.ESTALE, errno.EPIPE, errno.ENOMEM)
_REMEDIES = {
    errno.ENOENT: "Check the path.",
    errno.EACCES: "Give a place that you may use, or change its permissions.",
    errno.EPERM: "Give a place that you may use, or change its permissions.",
    errno.EROFS: "Give a place that isn't read-only.",
    errno.EISDIR: "Give the path of a file.",
    errno.ENOTDIR: "A part of the path is a file: give another one.",
    errno.EEXIST: "Give another path, or move away what is there.",
    errno.ENAMETOOLONG: "Give a shorter name.",
    errno.ELOOP: "Its symbolic links lead in a circle: give another path.",
    errno.ENXIO: "Nobody reads it: give a file, or start the reader.",
    errno.EMFILE: "Raise the limit of open files: ulimit -n 4096.",
    errno.EPIPE: "Whoever read it has ended.",
    **dict.fromkeys(_LACK, "Make room there, or give another place."),
}


def write_with(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary sibling, then fsync it and rename it over `path`.

    A kill at any instant leaves the old file or the new one, which keeps the old one's mode. A symbolic link stays, and the file
    that it leads to is replaced. A device, a pipe or an open file gets the bytes themselves. Raises `OSError` with `path` as its
    filename. The caller sees to it that one rank alone calls this.
    """
    with _naming(path):
        if is_special(path):
            _write_through(path, write)
            return
        target = _follow(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        old = target.stat() if target.exists() else None
        with _sibling(target, 0o666 if old is None else 0o600) as temporary:
            write(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            if old is not None:
                _keep_rights(temporary, old)
            temporary.replace(target)
        sync_folder(target.parent)


def write_new(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary sibling, then fsync it and name it `path`, whole, unless another process has done so by then.

    Of a file that is replaced on a network file system another host loses the pages that it has mapped. Raises `OSError` with
    `path` as its filename, `FileExistsError` if there is one.
    """
    with _naming(path):
        with _sibling(path, 0o666) as temporary:
            write(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            try:
                os.link(temporary, path)
            except OSError as error:
                if error.errno in _NO_LINKS and not path.exists():
                    temporary.replace(path)
                # a server whose answer was lost is asked again, and finds its own work
                elif not (path.exists() and path.samefile(temporary)):
                    raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, if its file system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def try_output(path: Path) -> None:
    """Raise the `OSError` now that writing `path` would raise after the work; sweep what killed writes of it left behind.

    Nothing is made, and nothing of what is there changes: a device or a pipe isn't even opened.
    """
    with _naming(path):
        if is_special(path):
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        target = _follow(path)
        _probe(target.parent)
        sweep(target.parent, target.name)


def try_folder(folder: Path) -> None:
    """Raise the `OSError` now that writing into `folder`, or making it, would raise after the work."""
    with _naming(folder):
        _probe(folder)


def sweep(folder: Path, name: str | None = None, *, least_seconds: float = 0.0) -> None:
    """Remove temporary files of writes that were killed, of one name or of all; those of living writes are locked.

    Files younger than `least_seconds` stay: where several write at once, one isn't locked yet when it is made, and some file
    systems keep locks from other hosts.
    """
    try:
        entries = [entry.path for entry in os.scandir(folder) if _LEFTOVER.fullmatch(entry.name) and entry.is_file()]
    except OSError:
        return
    wanted = None if name is None else f".{_shorten(name)}."
    for path in map(Path, entries):
        if wanted is None or path.name.startswith(wanted):
            with contextlib.suppress(OSError):
                if least_seconds <= 0 or time.time() - path.stat().st_mtime >= least_seconds:
                    _remove_unlocked(path)


def explain(error: OSError) -> tuple[str, int]:
    """A sentence for a user with file, cause and remedy; and the exit code: 1 for a fault, 2 for a path that can't be used."""
    if error.errno is None:
        return str(error) or type(error).__name__, 1
    where = error.filename2 or error.filename
    name = os.fsdecode(where) if isinstance(where, (str, bytes, os.PathLike)) else None
    cause = os.strerror(error.errno)
    remedy = _REMEDIES.get(error.errno, "")
    told = f"{name} can't be used: {cause}." if name else f"{cause}."
    return f"{told} {remedy}".strip(), 1 if error.errno in _FAULTS or name is None else 2


def _probe(folder: Path) -> None:
    """Write a little into `folder`, or the nearest above it that is there, and take it away again."""
    nearest = folder.absolute()
    while not nearest.exists() and not nearest.is_symlink():
        nearest = nearest.parent
    if not nearest.is_dir():
        code = errno.EEXIST if nearest == folder.absolute() else errno.ENOTDIR
        raise OSError(code, os.strerror(code))
    with _sibling(nearest / "kappaspeech", 0o600) as probe, probe.open("wb", buffering=0) as file:
        file.write(bytes(_PROBE_BYTES))
        os.fsync(file.fileno())


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Give errors of the system `path` as their file if they name a temporary one, or none."""
    try:
        yield
    except OSError as error:
        if error.errno is None or (error.filename is not None and not str(error.filename).endswith(".tmp")):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    except Exception as error:
        found = _SYSTEM_ERROR.search(str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


def is_special(path: Path) -> bool:
    """True if there is something at `path` that must not be replaced. Raises `OSError` for a folder."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return not stat.S_ISREG(mode) or _DESCRIPTOR.fullmatch(os.path.abspath(path)) is not None


def _write_through(path: Path, write: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / path.name
        write(whole)
        # a pipe waits here for its reader
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        with whole.open("rb") as content, os.fdopen(descriptor, "wb", buffering=0) as file:
            while block := content.read(1 << 20):
                view = memoryview(block)
                while view:
                    view = view[file.write(view) :]


def _follow(path: Path) -> Path:
    """The file that a symbolic link leads to, which may not be there yet."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextlib.contextmanager
def _sibling(target: Path, mode: int) -> Iterator[Path]:
    """An empty file beside `target` while the context is open, locked so that nobody sweeps it; it may be renamed meanwhile."""
    while True:
        path = target.with_name(f".{_shorten(target.name)}.{secrets.token_hex(4)}.tmp")
        # the umask counts as for any other file, and stays as it is: it is the whole process's
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.exists():
            break
        os.close(descriptor)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _remove_unlocked(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except BlockingIOError:
        return
    except OSError:
        if time.time() - path.stat().st_mtime > _STALE_SECONDS:
            path.unlink()
    finally:
        os.close(descriptor)


def _keep_rights(path: Path, old: os.stat_result) -> None:
    if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
        # only root may give a file away
        with contextlib.suppress(OSError):
            os.chown(path, old.st_uid, old.st_gid)
    path.chmod(stat.S_IMODE(old.st_mode) & 0o777)


def _shorten(name: str) -> str:
    """A name that leaves room for what a temporary one adds, within the 255 bytes that file systems allow."""
    return os.fsdecode(os.fsencode(name)[:_LONGEST_NAME_BYTES])
