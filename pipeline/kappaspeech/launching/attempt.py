"""One start of a run: its ranks from the first to the last, and its real outcome.

A launcher's exit code says little: `deepspeed` ends with 0 if its child was ended by a signal, and lives on if ssh hangs. The
status that the run itself wrote is what counts.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from kappaspeech.errors import InputError
from kappaspeech.launching import leftovers
from kappaspeech.launching.command_lines import MARK_VARIABLE, CommandLine
from kappaspeech.launching.file_system import FolderWatch
from kappaspeech.launching.reports import RankReport, read_reports
from kappaspeech.runs.contents import RECORD_FILE, STOP_FILE
from kappaspeech.runs.folder import RunFolder
from kappaspeech.runs.lease import launch_of
from kappaspeech.signals import Handling

# The time that ranks and launcher may take to end by themselves once a rank has failed or the run has ended.
GRACE_SECONDS = 30.0
_POLL_SECONDS = 0.2
_STOP_TEXT = "asked of kappaspeech train"


@dataclass(frozen=True)
class Attempt:
    """The end of a start: `status` "finished", "resumable", or "failed" with its causes, the first cause first."""

    status: str
    exit_code: int
    causes: tuple[str, ...] = ()


class Signals:
    """SIGINT, SIGTERM and SIGUSR1 while the context is open: the number that have come, and the last of them."""

    def __init__(self) -> None:
        self.count = 0
        self._handling = Handling(self._on_signal)

    def __enter__(self) -> Signals:
        self._handling.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._handling.__exit__()

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1


def run_attempt(
    command: CommandLine,
    *,
    mark: str,
    run_dir: Path,
    signals: Signals,
    stall_seconds: float,
    hosts_by_rank: Sequence[str] = (),
    end_remote: Callable[[], list[str]] | None = None,
) -> Attempt:
    """Start `command`, wait until it has ended, end the processes that it left behind, and return the run's outcome.

    A first signal asks the ranks, through the run folder's STOP file, to save and end; a second one ends them at once.
    `end_remote` ends the processes left on other hosts and returns the problems. `hosts_by_rank` names the hosts of ranks without
    a report. A run folder that hasn't answered for `stall_seconds` ends the start too.
    """
    before = _identity(run_dir)
    environment = {**os.environ, **command.variables, MARK_VARIABLE: mark}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"

    def is_over() -> bool:
        return bool(read_reports(run_dir, mark)) or _status(run_dir, before, mark) not in (None, "running")

    problems: list[str] = []
    watch = FolderWatch(run_dir, timeout_seconds=stall_seconds, look=is_over)
    with _stop_file(run_dir) as ask_to_stop, watch:
        # a session of its own: Ctrl-C would reach launcher and ranks alike, and a launcher takes its ranks with it
        launcher = subprocess.Popen(command.words, env=environment, cwd=command.folder, start_new_session=True)
        try:
            stall = _wait(launcher, watch=watch, signals=signals, ask_to_stop=ask_to_stop)
        finally:
            try:
                leftovers.end(mark)
            except TimeoutError as error:
                problems.append(f"{socket.gethostname()}: {error}")
            problems += end_remote() if end_remote is not None else []
            launcher.poll()
    if stall is not None:
        return Attempt("failed", 1, (stall, *problems))
    status = _status(run_dir, before, mark)
    return judge(status, launcher.returncode, read_reports(run_dir, mark), hosts_by_rank=hosts_by_rank, problems=problems)


def _wait(
    launcher: subprocess.Popen[bytes], *, watch: FolderWatch, signals: Signals, ask_to_stop: Callable[[], None]
) -> str | None:
    """Wait until the launcher has ended, or has had its time after the run's end, or a second signal has come.

    Return the reason why the run folder can't be used any more, or None.
    """
    over_since = None
    asked = False
    while launcher.poll() is None and signals.count < 2:
        if signals.count and not asked:
            asked = True
            ask_to_stop()
        if over_since is None and watch.is_over:
            over_since = time.monotonic()
        if over_since is not None and time.monotonic() - over_since > GRACE_SECONDS:
            return None
        problem = watch.problem()
        if problem is not None:
            return problem
        time.sleep(_POLL_SECONDS)
    return None


def judge(
    status: str | None,
    code: int | None,
    reports: Sequence[RankReport],
    *,
    hosts_by_rank: Sequence[str],
    problems: Sequence[str],
) -> Attempt:
    """The outcome of a start: `status` is the one that its ranks wrote to run.json, `code` its launcher's, None if it still ran.

    Causes come in this order: ranks' reports of themselves, ranks that left no report, the others' reports of those.
    """
    if status == "finished":
        return Attempt("finished", 0)
    if status == "resumable" and not reports:
        return Attempt("resumable", 0)
    ended = "was still running" if code is None else f"ended with {code}" if code >= 0 else f"was killed by signal {-code}"
    if reports:
        silent = sorted(set(range(len(hosts_by_rank))) - {report.rank for report in reports})
        gone = [f"rank {rank} on {hosts_by_rank[rank]} ended without a word, as a killed process does" for rank in silent]
        own, echoes = ([str(report) for report in reports if report.is_echo == echo] for echo in (False, True))
        causes = [*own, *gone, *echoes]
    else:
        where = "before the run began" if status is None else f"with the run's status '{status}'"
        causes = [f"no rank said why it ended; the launcher {ended} {where}"]
    exit_code = max((report.exit_code for report in reports), default=2 if code == 2 and status is None else 1)
    return Attempt("failed", exit_code, (*causes, *problems))


def _identity(run_dir: Path) -> object:
    """An id of one writing of run.json, which differs from another's: each replaces the file."""
    try:
        found = (run_dir / RECORD_FILE).stat()
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns)


def _status(run_dir: Path, before: object, mark: str) -> str | None:
    """The status that this start's ranks wrote, or None if they haven't: another start's says nothing of this one."""
    if _identity(run_dir) == before:
        return None
    try:
        record = RunFolder(run_dir).read_record()
        is_own = launch_of(record.get("start_id")) in (mark, None)
        return str(record["status"]) if is_own else None
    except (InputError, KeyError):
        return None


@contextlib.contextmanager
def _stop_file(run_dir: Path) -> Iterator[Callable[[], None]]:
    """A function that asks the ranks to stop; the file is removed afterwards, and so is one that a killed start left."""
    path = run_dir / STOP_FILE
    written = False

    def remove() -> None:
        with contextlib.suppress(OSError):
            if path.read_text(encoding="utf-8") == _STOP_TEXT:
                path.unlink()

    def write() -> None:
        nonlocal written
        written = True
        with contextlib.suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
            file.write(_STOP_TEXT)

    remove()
    try:
        yield write
    finally:
        # a file system that may have stalled is touched only if there is something to remove
        if written:
            remove()
