"""`kappaspeech transcribe`: recordings to text, with a run or an export."""

from __future__ import annotations

import sys
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kappaspeech.commands.numbers import finite
from kappaspeech.escaping import for_terminal

if TYPE_CHECKING:
    from kappaspeech.evaluation.decoding import Decoded
    from kappaspeech.evaluation.transcripts import Transcript
    from kappaspeech.speech.samples import AudioSample


# what a viewer reads at once
_CUE_SECONDS = 7.0


class Format(str, Enum):
    """The formats of transcripts."""

    text = "text"
    json = "json"
    srt = "srt"


def transcribe(
    model: Annotated[Path, typer.Argument(help="A run's folder, or an export.")],
    recordings: Annotated[
        list[Path],
        typer.Argument(help="Audio of any length: files, folders of them, or - for standard input. m4a and others need ffmpeg."),
    ],
    format_: Annotated[Format, typer.Option("--format", help="text: file, tab, text. json and srt: with times.")] = Format.text,
    output: Annotated[
        Path | None, typer.Option(help="Write to this file; srt of several recordings: to this folder. Default: print.")
    ] = None,
    step: Annotated[str | None, typer.Option(help="Of a run: the checkpoint's step, or best. Default: the last.")] = None,
    base: Annotated[str | None, typer.Option(help="The base model, if it has moved since the training.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pieces decoded together.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest text of a piece.")] = 200,
    instruction: Annotated[
        str | None, typer.Option(help="The user's turn of the prompt, with {audio}, as in data.train. Default: the run's.")
    ] = None,
    piece_seconds: Annotated[
        float | None,
        typer.Option(callback=finite, min=1, max=30, help="The longest piece that is decoded. Default: 24; srt: 7, a cue."),
    ] = None,
) -> int:
    """Transcribe recordings; long ones are cut at their quietest points. One that can't be read is named and left out."""
    from kappaspeech.errors import DataError, InputError
    from kappaspeech.evaluation.recordings import find_audio, warn_of_length
    from kappaspeech.needed_packages import need
    from kappaspeech.outputs import try_folder, try_output
    from kappaspeech.speech.samples import LONGEST_PIECE_SECONDS, SAMPLE_RATE_HZ

    need("kappaspeech transcribe", "soundfile", "soxr", "transformers", "whisper")
    recordings = find_audio(recordings)
    if format_ is Format.srt and len(recordings) > 1 and output is None:
        raise InputError("Subtitles of several recordings need a folder to go to: give --output DIR.")
    if output is not None:
        (try_folder if format_ is Format.srt and len(recordings) > 1 else try_output)(output)
    longest = piece_seconds or (_CUE_SECONDS if format_ is Format.srt else LONGEST_PIECE_SECONDS)
    readable, pieces, errors = [], [], []
    for path in dict.fromkeys(recordings):
        try:
            pieces += _read_pieces(path, longest_seconds=longest, instruction=instruction)
            readable.append(path)
        except DataError as error:
            errors.append(error)
    if not readable:
        raise errors[0]
    if (warning := warn_of_length(model, max(len(piece.waveform) for piece in pieces) / SAMPLE_RATE_HZ)) is not None:
        print(for_terminal(warning), file=sys.stderr)
    from kappaspeech.trained.opening import choose_device, open_transcriber, parse_step

    transcriber = open_transcriber(
        model,
        step=parse_step(step),
        device=choose_device(0),
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        base=base,
    )
    # only JSON has a place for it
    decoded = replace(transcriber, keeps_confidence=format_ is Format.json).decode_all(pieces)
    folder = output if format_ is Format.srt and len(recordings) > 1 else None
    _write(_join(readable, pieces, decoded), format_, folder=folder, file=output)
    for failure in errors:
        print(for_terminal(f"error: {failure}"), file=sys.stderr)
    return 1 if errors else 0


def _read_pieces(path: Path, *, longest_seconds: float, instruction: str | None) -> list[AudioSample]:
    from kappaspeech.evaluation.recordings import read_audio
    from kappaspeech.speech.samples import AudioSample, cut_at_pauses

    pieces = cut_at_pauses(read_audio(path), longest_seconds=longest_seconds)
    return [AudioSample(f"{path}#{number:06d}", piece, "", "", instruction) for number, piece in enumerate(pieces)]


def _join(paths: list[Path], pieces: list[AudioSample], decoded: list[Decoded]) -> list[Transcript]:
    """Each recording's texts with the times of their pieces."""
    from kappaspeech.evaluation.transcripts import Segment, Transcript
    from kappaspeech.speech.samples import SAMPLE_RATE_HZ

    segments: dict[str, list[Segment]] = {str(path): [] for path in paths}
    num_samples = dict.fromkeys(segments, 0)
    for piece, found in zip(pieces, decoded, strict=True):
        recording = piece.key.rpartition("#")[0]
        start = num_samples[recording]
        num_samples[recording] = end = start + len(piece.waveform)
        segments[recording].append(Segment(start / SAMPLE_RATE_HZ, end / SAMPLE_RATE_HZ, found.text, found.confidence))
    return [Transcript(recording, tuple(pieces_of_it)) for recording, pieces_of_it in segments.items()]


def _write(transcripts: list[Transcript], format_: Format, *, folder: Path | None, file: Path | None) -> None:
    """Subtitles, one a recording, into `folder` if there is one; else all into `file`, or printed."""
    from kappaspeech.artefacts import write_text
    from kappaspeech.evaluation.transcripts import to_json, to_srt, to_text

    if folder is not None:
        for name, transcript in _subtitle_names(transcripts).items():
            write_text(folder / name, to_srt(transcript))
            print(for_terminal(str(folder / name)))
        return
    content = {Format.text: to_text, Format.json: to_json}.get(format_, lambda found: to_srt(found[0]))(transcripts)
    if file is None:
        print(content, end="")
    else:
        write_text(file, content)
        print(for_terminal(str(file)))


def _subtitle_names(transcripts: list[Transcript]) -> dict[str, Transcript]:
    """File names for subtitles; recordings of one name in several folders get a number."""
    names: dict[str, Transcript] = {}
    for transcript in transcripts:
        stem = Path(transcript.recording).stem
        candidates = (f"{stem}{suffix}.srt" for suffix in ("", *(f"-{number}" for number in range(2, len(transcripts) + 2))))
        names[next(name for name in candidates if name not in names)] = transcript
    return names
