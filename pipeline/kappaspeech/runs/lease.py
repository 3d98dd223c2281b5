"""The right to train in a run folder: one start at a time, of all hosts that share the folder.

The holder writes a file and touches it every few seconds, in a thread of its own: the ranks' heartbeat must not wait for a file
system that hangs. The next start asks the process itself if it is on this machine. For any other machine it watches for touches,
and takes no host's clock for another's. A lease that isn't touched for `EXPIRY_SECONDS` is a dead host's.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kappaspeech.errors import InputError, TrainingError
from kappaspeech.escaping import for_terminal
from kappaspeech.ranks.liveness import own_place, process_state
from kappaspeech.runs.contents import LEASE_FILE, STOP_FILE

RENEWAL_SECONDS = 3.0
# also the longest that a start waits for a lease that a dead host left
EXPIRY_SECONDS = 30.0
_POLL_SECONDS = 0.2
_JOIN_SECONDS = 2.0
# the id that `kappaspeech train` gives all ranks of one start, if it started them
_MARK_VARIABLE = "KAPPASPEECH_LAUNCH"
_UNITS = (("day", 86_400), ("hour", 3_600), ("minute", 60))


@dataclass(frozen=True)
class Holder:
    """The start that holds a lease. `machine` is one boot of one host; `place` finds the process there."""

    id: str
    host: str
    pid: int
    machine: str | None
    place: list[Any] | None
    began_seconds: float

    @staticmethod
    def here(start_id: str) -> Holder:
        return Holder(start_id, socket.gethostname(), os.getpid(), _machine(), own_place(), time.time())

    @property
    def state(self) -> str:
        """The holder's state: "gone", "stopped" or "running"; "unknown" if this isn't its machine."""
        same = self.machine is not None and self.machine == _machine()
        return process_state(self.place) if same else "unknown"

    def __str__(self) -> str:
        stopped = ", which is stopped (SIGSTOP)" if self.state == "stopped" else ""
        return f"process {self.pid} on {self.host}{stopped}" if self.host else "another start"

    @property
    def age(self) -> str:
        """The time since it began, by this host's clock."""
        seconds = time.time() - self.began_seconds
        unit, size = next(((u, s) for u, s in _UNITS if seconds >= 2 * s), ("second", 1))
        return f"{max(0.0, seconds) / size:.0f} {unit}s" if self.host else "moments"


def make_start_id() -> str:
    """An id that differs for each start; its first part is its launch's, if `kappaspeech train` made one."""
    return f"{os.environ.get(_MARK_VARIABLE, '')}/{secrets.token_hex(8)}"


def launch_of(start_id: object) -> str | None:
    """The launch that a start was part of, "" if there was none; None if `start_id` isn't one."""
    return start_id.rpartition("/")[0] if isinstance(start_id, str) else None


def free(folder: Path) -> None:
    """Return once nobody holds `folder`, taking a dead start's lease away; `EXPIRY_SECONDS` later at most.

    Raises `InputError`, naming the holder, if it lives.
    """
    path = folder / LEASE_FILE
    while (found := _read(path)) is not None:
        holder, touched = found
        state = _watch(path, holder, touched) if holder.state == "unknown" else holder.state
        if state in ("running", "stopped"):
            raise InputError(
                f"{folder} has been trained in for {holder.age} by {holder}. Two starts would destroy each other's files: wait "
                f"for that one, end it (touch {folder / STOP_FILE}), or give another run_dir."
            )
        if state == "gone":
            _take_away(path, holder.id)


def look(folder: Path) -> Holder | None:
    """The holder of `folder`, or its last one; None for nobody. Takes nothing away and waits for nothing."""
    found = _read(folder / LEASE_FILE)
    return found and found[0]


class Lease:
    """The lease of a run folder, for the start `start_id`. Rank 0 holds it; other ranks have one that was never acquired."""

    def __init__(self, folder: Path, start_id: str) -> None:
        self.start_id = start_id
        self.folder = folder
        self._path = folder / LEASE_FILE
        self._made_folder = False
        self._renewed_seconds = 0.0
        self._lost_to: Holder | None = None
        self._is_held = False
        self._closed = threading.Event()
        self._keeper: threading.Thread | None = None

    def acquire(self) -> None:
        """Hold the folder from now on, or raise `InputError`, within seconds if the holder lives."""
        self._made_folder = not self.folder.exists()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free(self.folder)
            while not self._write():
                free(self.folder)
        except OSError as error:
            raise InputError(
                f"{self.folder} can't be written on {socket.gethostname()}: {error}. Give a run_dir that can."
            ) from error
        self._is_held = True
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def release(self) -> None:
        """Release the folder; one that was made for this start, and in which nothing was written, is removed."""
        self._closed.set()
        if not self._is_held:
            return
        self._is_held = False
        if self._keeper is not None:
            # its thread may be about to touch the file, or to make it again; a file system that hangs delays nothing else
            self._keeper.join(_JOIN_SECONDS)
        with contextlib.suppress(OSError):
            found = _read(self._path)
            if found is not None and found[0].id == self.start_id:
                self._path.unlink()
            if self._made_folder:
                self.folder.rmdir()

    def check(self) -> None:
        """Raise `TrainingError` if another start has the folder: this process was held up so long that it seemed dead."""
        if not self._is_held:
            return
        if _now_seconds() - self._renewed_seconds > EXPIRY_SECONDS:
            self._renew()
        if self._lost_to is not None:
            raise TrainingError(
                f"{self.folder} was taken over by {self._lost_to} while this process was held up for more than "
                f"{EXPIRY_SECONDS:.0f} s. Nothing more is written; the other one continues from the last checkpoint."
            )

    def _write(self) -> bool:
        """Make the file; False if there is one."""
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"schema_version": 1, **asdict(Holder.here(self.start_id))}, file)
        self._renewed_seconds = _now_seconds()
        return True

    def _keep(self) -> None:
        while not self._closed.wait(RENEWAL_SECONDS):
            # the disk may be full, or gone for a while: the next turn tries again
            with contextlib.suppress(OSError):
                self._renew()

    def _renew(self) -> None:
        found = _read(self._path)
        if self._closed.is_set():
            return
        if found is None:
            self._write()
        elif found[0].id != self.start_id:
            self._lost_to = found[0]
        else:
            # takes no room, so it works on a full disk
            os.utime(self._path)
            self._renewed_seconds = _now_seconds()


def _read(path: Path) -> tuple[Holder, int] | None:
    """The holder that a file names and when it was last touched, in its file system's nanoseconds; None without a file.

    A holder without a host means an empty or unreadable file: one that is just being written, or that was cut.
    """
    try:
        # opening asks a network file system's server, and a stat alone may not
        with path.open("rb") as file:
            touched, content = os.fstat(file.fileno()).st_mtime_ns, file.read()
    except FileNotFoundError:
        return None
    return _parse(content) or _NOBODY, touched


_NOBODY = Holder("", "", 0, None, None, 0.0)


def _parse(content: bytes) -> Holder | None:
    try:
        fields = json.loads(content)
        holder = Holder(*(fields[name] for name in Holder.__dataclass_fields__))
        kinds = (holder.id, str), (holder.host, str), (holder.pid, int), (holder.began_seconds, float)
        known = all(isinstance(value, kind) for value, kind in kinds)
        return holder if known and (holder.place is None or len(holder.place) == len(own_place() or ())) else None
    except (ValueError, TypeError, KeyError):
        return None


def _watch(path: Path, holder: Holder, touched: int) -> str:
    """The fate of another machine's lease: "running" if it is touched, "gone" if it isn't, else "changed"."""
    began = time.monotonic()
    told = False
    while time.monotonic() - began < EXPIRY_SECONDS:
        time.sleep(_POLL_SECONDS)
        now = _read(path)
        if now is None or now[0].id != holder.id:
            return "changed"
        if now[1] != touched:
            return "running"
        if not told and time.monotonic() - began > 2 * RENEWAL_SECONDS:
            told = True
            line = f"{path.parent} was held by {holder}: waiting {EXPIRY_SECONDS:.0f} s for a sign of its life"
            print(for_terminal(line), file=sys.stderr, flush=True)
    return "gone"


def _take_away(path: Path, start_id: str) -> None:
    """Remove the lease of `start_id`, and no other that has come in its place since it was read."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        found = _read(aside)
        if found is not None and found[0].id != start_id and not path.exists():
            aside.rename(path)
        else:
            aside.unlink()


def _machine() -> str | None:
    """An id of this boot of this host: names, and even process namespaces' numbers, are the same on many hosts."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


# counts while the machine sleeps, which time.monotonic doesn't
_now_seconds: Callable[[], float] = (
    (lambda: time.clock_gettime(time.CLOCK_BOOTTIME)) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)
