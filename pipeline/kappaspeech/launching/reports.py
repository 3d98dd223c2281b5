"""Each rank's report of its own end, left in the run folder: causes outlive launchers that lose exit codes and lines."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from kappaspeech.artefacts import write_json
from kappaspeech.errors import KappaSpeechError, RankFailure
from kappaspeech.launching.command_lines import MARK_VARIABLE
from kappaspeech.ranks.broken_exchange import tells_of_broken_exchange
from kappaspeech.redaction import redact
from kappaspeech.runs.contents import LAUNCH_FOLDER

# A rank that fails because its file system hangs must not hang on saying so.
_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class RankReport:
    """The reason why a rank ended. `is_echo`: it ended because another one did, or could no longer be reached."""

    rank: int
    host: str
    cause: str
    exit_code: int
    is_echo: bool

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}: {self.cause}"


def report_folder(run_dir: Path, mark: str) -> Path:
    """The folder in which the start `mark` keeps its command line and its ranks' reports."""
    return run_dir / LAUNCH_FOLDER / mark


def write_report(run_dir: Path, error: BaseException) -> None:
    """Leave this rank's cause for the parent that started it with a mark; without one, nothing. Returns within ten seconds."""
    mark = os.environ.get(MARK_VARIABLE)
    if mark is None:
        return
    rank = int(os.environ.get("RANK", "0"))
    known = isinstance(error, KappaSpeechError)
    cause = str(error) if known else redact(f"{type(error).__name__}: {error}")
    code = error.exit_code if isinstance(error, KappaSpeechError) else 1
    is_echo = isinstance(error, RankFailure) or (not known and tells_of_broken_exchange(cause))
    report = RankReport(rank, socket.gethostname(), cause, code, is_echo)
    path = report_folder(run_dir, mark) / f"rank-{rank:05d}.json"
    writer = threading.Thread(target=_write, args=(path, report), daemon=True)
    writer.start()
    writer.join(_TIMEOUT_SECONDS)


def _write(path: Path, report: RankReport) -> None:
    # the disk may be full or missing: the rank's own message on its standard error has to do
    with contextlib.suppress(OSError):
        write_json(path, asdict(report))


def read_reports(run_dir: Path, mark: str) -> list[RankReport]:
    """The reports of one start, those of ranks that failed by themselves before those that only followed."""
    found = []
    for path in sorted(report_folder(run_dir, mark).glob("rank-*.json")):
        try:
            found.append(RankReport(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):
            continue  # being written
    return sorted(found, key=lambda report: (report.is_echo, report.rank))
