"""Places for the texts of `kappaspeech transcribe`: a log that grows and is gone on with, or files at the end."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kappaspeech.escaping import for_json, for_terminal
from kappaspeech.redaction import redact_values

if TYPE_CHECKING:
    from kappaspeech.evaluation.clip_job import Speed
    from kappaspeech.evaluation.transcript_log import TranscriptLog
    from kappaspeech.evaluation.transcripts import Transcript


# what file systems allow
_LONGEST_NAME_BYTES = 255
# the times of a part of a file, which `clips` puts behind its name
_PART = re.compile(r"#t=[0-9.e+-]{1,20}(,[0-9.e+-]{1,20})?$")


class Format(str, Enum):
    """The formats of transcripts."""

    text = "text"
    json = "json"
    jsonl = "jsonl"
    srt = "srt"


class Output(Protocol):
    """A place for transcripts, of which the first `num_done` are there already."""

    num_done: int

    def keep(self, transcripts: Sequence[Transcript]) -> None:
        """Take the next transcripts."""

    def finish(self, speed: Speed | None) -> int:
        """Put all in its place and say where; return the exit code, 1 where a recording couldn't be read."""


class Printed:
    """JSON lines on standard output, each round's as soon as it is done."""

    num_done = 0

    def __init__(self) -> None:
        self._errors: list[str] = []

    def keep(self, transcripts: Sequence[Transcript]) -> None:
        from kappaspeech.evaluation.transcripts import to_line
        from kappaspeech.json_lines import dump_line

        for transcript in transcripts:
            print(for_json(dump_line(redact_values(to_line(transcript))).rstrip("\n"), sys.stdout.encoding))
        sys.stdout.flush()
        self._errors += _errors(transcripts)

    def finish(self, speed: Speed | None) -> int:
        _tell(self._errors, speed)
        return 1 if self._errors else 0


class Logged:
    """A log at a path."""

    def __init__(self, log: TranscriptLog, *, model: str, num_ranks: int) -> None:
        self._log, self._model, self._num_ranks = log, model, num_ranks
        self.num_done = log.num_done

    def keep(self, transcripts: Sequence[Transcript]) -> None:
        self._log.append(transcripts)

    def finish(self, speed: Speed | None) -> int:
        measured: dict[str, object] = {"model": self._model}
        if speed is not None:
            measured |= {"num_ranks": self._num_ranks, "decoded_audio_seconds": round(speed.audio_seconds, 3)}
            measured |= {"decode_seconds": round(speed.decode_seconds, 6), "real_time_factor": round(speed.real_time_factor, 6)}
        self._log.finish(**measured)
        _tell([], speed)
        print(for_terminal(str(self._log.path)))
        if self._log.num_errors:
            print(
                for_terminal(
                    f'error: {self._log.num_errors} of {self._log.num_done} recordings can\'t be read: those with an "error" in '
                    f"{self._log.path}."
                ),
                file=sys.stderr,
            )
        return 1 if self._log.num_errors else 0


class Gathered:
    """All at the end: subtitles of several recordings into the folder `path`, anything else into that file, or printed."""

    num_done = 0

    def __init__(self, format_: Format, path: Path | None, *, into_folder: bool) -> None:
        self._format, self._path, self._into_folder = format_, path, into_folder
        self._transcripts: list[Transcript] = []

    def keep(self, transcripts: Sequence[Transcript]) -> None:
        self._transcripts += transcripts

    def finish(self, speed: Speed | None) -> int:
        self._write()
        errors = _errors(self._transcripts)
        _tell(errors, speed)
        return 1 if errors else 0

    def _write(self) -> None:
        from kappaspeech.artefacts import write_text
        from kappaspeech.evaluation.transcripts import to_json, to_srt, to_text

        if self._into_folder and self._path is not None:
            for name, transcript in subtitle_names(self._transcripts).items():
                if transcript.error is None:
                    write_text(self._path / name, to_srt(transcript))
                    print(for_terminal(str(self._path / name)))
            return
        transcripts = [transcript for transcript in self._transcripts if transcript.error is None]
        makers = {Format.text: to_text, Format.json: to_json}
        content = makers.get(self._format, lambda found: to_srt(found[0]))(transcripts)
        if self._path is None:
            # names and texts in lines have been escaped
            shown = for_json(content, sys.stdout.encoding) if self._format is Format.json else content
            print(shown, end="")
        else:
            write_text(self._path, content)
            print(for_terminal(str(self._path)))


def open_output(
    format_: Format,
    path: Path | None,
    *,
    names: Sequence[str],
    made_by: dict[str, object],
    model: str,
    num_ranks: int,
    opened: ExitStack,
) -> Output:
    """The output of a command line, checked before the work. Raises `InputError`, or the `OSError` of its place."""
    from kappaspeech.errors import InputError
    from kappaspeech.outputs import try_folder, try_output

    into_folder = format_ is Format.srt and len(names) > 1
    if into_folder and path is None:
        raise InputError("Subtitles of several recordings need a folder to go to: give --output DIR.")
    if path is not None:
        (try_folder if into_folder else try_output)(path)
    if format_ is not Format.jsonl:
        return Gathered(format_, path, into_folder=into_folder)
    if path is None:
        return Printed()
    from kappaspeech.evaluation.transcript_log import TranscriptLog

    log = opened.enter_context(TranscriptLog(path, made_by=made_by, names=names))
    return Logged(log, model=model, num_ranks=num_ranks)


def subtitle_names(transcripts: Sequence[Transcript]) -> dict[str, Transcript]:
    """File names for subtitles, each within one folder; recordings of one name in several folders get a number.

    A recording that can't be read has its name too, so that the others' are the same once it can.
    """
    names: dict[str, Transcript] = {}
    numbers: dict[str, int] = {}
    for transcript in transcripts:
        # the name of a shard's clip is whatever the shard says
        name = transcript.recording.rpartition("/")[2]
        # of a part of a file the times stay
        found = _PART.search(name)
        part = found[0] if found else ""
        stem = Path(name.removesuffix(part)).stem
        number = numbers.get(stem + part, 0) + 1
        while (file := _subtitle_name(stem, part, number)) in names:
            number += 1
        numbers[stem + part], names[file] = number, transcript
    return names


def _subtitle_name(stem: str, part: str, number: int) -> str:
    """A file name, of which a long stem's end is left out."""
    end = f"{part}{f'-{number}' if number > 1 else ''}.srt"
    while len(os.fsencode(stem + end)) > _LONGEST_NAME_BYTES:
        stem = stem[:-1]
    return stem + end


def _errors(transcripts: Sequence[Transcript]) -> list[str]:
    return [transcript.error for transcript in transcripts if transcript.error is not None]


def _tell(errors: Sequence[str], speed: Speed | None) -> None:
    from kappaspeech.evaluation.report import describe_speed

    if speed is not None:
        print(for_terminal(describe_speed(speed.audio_seconds, speed.decode_seconds)), file=sys.stderr)
    for error in errors:
        print(for_terminal(f"error: {error}"), file=sys.stderr)
