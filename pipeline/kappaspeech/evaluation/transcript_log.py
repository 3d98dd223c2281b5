"""Transcripts as a file of JSON lines that grows in the order of the recordings, so that a job that was cut goes on from its end.

Beside X.jsonl, or X, lies X.job.json: by which model and options it is made, and at the end how much was done in what time.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from kappaspeech.artefacts import read_json, write_json
from kappaspeech.errors import InputError
from kappaspeech.escaping import encodable, for_line
from kappaspeech.evaluation.transcripts import Transcript, to_line
from kappaspeech.json_lines import Record, dump_line, parse_lines
from kappaspeech.outputs import is_special

SCHEMA_VERSION = 1
_JOB_SUFFIX = ".job.json"


class TranscriptLog:
    """The log at `path` of a job, which is `made_by` a model and options, for recordings of these `names`; a context manager.

    `num_done` of them, the first, are there already: what an earlier job that was cut has left. Raises `InputError` if the
    file was made otherwise, or is being written. A device or a pipe is written through, and nothing is left beside it. What was
    measured of a job that is finished stays.
    """

    def __init__(self, path: Path, *, made_by: Mapping[str, Any], names: Sequence[str]) -> None:
        self.path = path
        self.job_path = path.with_name(f"{path.name.removesuffix('.jsonl')}{_JOB_SUFFIX}")
        self._made_by, self._names = dict(made_by), [encodable(name) for name in names]
        self._is_special, self._was_finished = is_special(path), False
        self.num_done = self.num_errors = 0
        self.audio_seconds = 0.0

    def __enter__(self) -> TranscriptLog:
        if self._is_special:
            self._file = open(self.path, "wb", buffering=0)
            return self
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab+", buffering=0)
        try:
            self._lock()
            self._file.seek(0)
            content = self._file.read()
            before = self._check_job(is_empty=not content)
            self._take_over(content)
            self._was_finished = before.get("is_finished") is True and self.num_done == len(self._names)
            if not self._was_finished:
                write_json(self.job_path, {"schema_version": SCHEMA_VERSION, "is_finished": False, **self._made_by})
        except BaseException:
            self._file.close()
            raise
        return self

    def append(self, transcripts: Sequence[Transcript]) -> None:
        """Add the next recordings' lines; they are on the disk when it returns. Raises `OSError`."""
        lines = [to_line(transcript) for transcript in transcripts]
        content = memoryview("".join(map(dump_line, lines)).encode("utf-8", "backslashreplace"))
        try:
            while content:
                content = content[self._file.write(content) :]
            if not self._is_special:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), str(self.path)) from error
        self._count(lines)

    def finish(self, **measured: Any) -> None:
        """Write what was `measured` of the job, with the sums over all lines."""
        if self._is_special or self._was_finished:
            return
        sums = {"num_recordings": self.num_done, "num_errors": self.num_errors, "audio_seconds": round(self.audio_seconds, 3)}
        content = {"schema_version": SCHEMA_VERSION, "is_finished": self.num_done == len(self._names), **self._made_by}
        write_json(self.job_path, {**content, **sums, **measured})

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{self.path} is being written by another process. Wait for it, or give another --output.") from None
        except OSError:
            return  # a file system without locks

    def _check_job(self, *, is_empty: bool) -> dict[str, Any]:
        """The record of the job that left the lines; empty if there are none."""
        if is_empty:
            return {}
        if not self.job_path.exists():
            raise InputError(
                f"{self.path} is there already, and no {self.job_path.name} beside it says what made it. Give another --output, "
                "or remove the file."
            )
        before = read_json(self.job_path, schema_version=SCHEMA_VERSION)
        for key, value in self._made_by.items():
            if before.get(key) != value:
                raise InputError(
                    f"{self.path} was made with {key} {before.get(key)!r:.80}, and now it is {value!r:.80}. Give another "
                    "--output, or remove the file to begin again."
                )
        return before

    def _take_over(self, content: bytes) -> None:
        """Keep the whole lines, which must be those of the first recordings; cut off what a kill left of a last one."""
        whole = content[: content.rfind(b"\n") + 1]
        lines, bad = parse_lines(whole, is_record=_is_line)
        if bad:
            raise InputError(
                f"{self.path}, line {bad[0].number} can't be read: {bad[0].cause}. Remove it and all that follow, or the file."
            )
        for number, line in enumerate(lines):
            wanted = self._names[number] if number < len(self._names) else None
            if line["recording"] != wanted:
                now = "there is none" if wanted is None else f"it is {for_line(wanted)}"
                raise InputError(
                    f"{self.path}, line {number + 1} is of {for_line(line['recording'])}, and of the recordings that are given "
                    f"now {now}. Give those of before, with others after them; or another --output."
                )
        if len(whole) < len(content):
            os.truncate(self._file.fileno(), len(whole))
        self._count(lines)

    def _count(self, lines: Sequence[Record]) -> None:
        self.num_done += len(lines)
        self.num_errors += sum("error" in line for line in lines)
        self.audio_seconds += sum(line.get("seconds", 0.0) for line in lines)


def _is_line(record: Record) -> bool:
    if not isinstance(record.get("recording"), str):
        return False
    seconds = record.get("seconds")
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    return isinstance(record.get("error"), str) or (isinstance(record.get("text"), str) and is_number)
