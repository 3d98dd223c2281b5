"""`kappaspeech transcribe`: recordings to text, with a run or an export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def transcribe(
    model: Annotated[Path, typer.Argument(help="A run's folder, or what `kappaspeech export` wrote.")],
    recordings: Annotated[list[Path], typer.Argument(help="Audio files (flac, wav, mp3, ogg, opus) of any length.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Pieces decoded together.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest text of a piece.")] = 200,
) -> None:
    """Transcribe recordings; one line each, file, tab, text. Long ones are cut at their quietest points."""
    from pipeline.speech.samples import AudioSample, cut_at_pauses, read_recording
    from pipeline.training.trained_run import choose_device, open_transcriber

    pieces = [
        AudioSample(f"{path}#{number:04d}", piece, "", "")
        for path in recordings
        for number, piece in enumerate(cut_at_pauses(read_recording(path)))
    ]
    transcriber = open_transcriber(model, device=choose_device(0), batch_size=batch_size, max_new_tokens=max_new_tokens)
    texts: dict[str, list[str]] = {str(path): [] for path in recordings}
    for piece, text in zip(pieces, transcriber.transcribe(pieces), strict=True):
        texts[piece.key.rpartition("#")[0]].append(text)
    for path in recordings:
        print(f"{path}\t{' '.join(texts[str(path)])}")
