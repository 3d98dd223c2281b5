"""`kappaspeech transcribe`: recordings to text, with a run or an export, on any number of ranks."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kappaspeech.commands.best_step import warn_of_best
from kappaspeech.commands.local_ranks import start_ranks
from kappaspeech.commands.numbers import finite
from kappaspeech.commands.transcript_output import Format, open_output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kappaspeech.evaluation.clips import Clip, ClipReader
    from kappaspeech.evaluation.transcribe import Transcriber
    from kappaspeech.ranks.cluster import Cluster
    from kappaspeech.trained.opening import Step

# what a viewer reads at once
_CUE_SECONDS = 7.0


def transcribe(
    model: Annotated[Path, typer.Argument(help="A run's folder, or an export.")],
    recordings: Annotated[
        list[str],
        typer.Argument(
            help="Audio of any length: files, folders of them, manifests (JSON lines or .tsv), shards (.tar or .index), or - for "
            "standard input. m4a and others need ffmpeg."
        ),
    ],
    format_: Annotated[
        Format,
        typer.Option("--format", help="text: file, tab, text. json, srt: with times. jsonl: lines as they are done; continues."),
    ] = Format.text,
    output: Annotated[
        Path | None, typer.Option(help="Write to this file; srt of several recordings: to this folder. Default: print.")
    ] = None,
    step: Annotated[str | None, typer.Option(help="Of a run: the checkpoint's step, or best. Default: the last.")] = None,
    base: Annotated[str | None, typer.Option(help="The base model, if it has moved since the training.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pieces decoded together.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest text of a piece.")] = 200,
    num_beams: Annotated[int | None, typer.Option(min=1, help="Beams; 1 is greedy. Default: as the run was evaluated.")] = None,
    instruction: Annotated[
        str | None, typer.Option(help="The user's turn of the prompt, with {audio}, as in data.train. Default: the run's.")
    ] = None,
    hot_words: Annotated[
        str | None,
        typer.Option(help="Words that may be said: a file of one word or phrase a line, or words with commas between them."),
    ] = None,
    piece_seconds: Annotated[
        float | None,
        typer.Option(callback=finite, min=1, max=30, help="The longest piece that is decoded. Default: 24; srt: 7, a cue."),
    ] = None,
    nproc: Annotated[int | None, typer.Option(min=1, help="Start this many ranks on this host.")] = None,
) -> int:
    """Transcribe recordings; long ones are cut at their pauses. One that can't be read is named, and the others go on."""
    from kappaspeech.needed_packages import need

    need("kappaspeech transcribe", "soundfile", "soxr", "transformers", "whisper")
    if nproc is not None:
        given: dict[str, Any] = {"format": format_.value, "output": output, "step": step, "base": base}
        given |= {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "num_beams": num_beams}
        given |= {"piece_seconds": piece_seconds, "instruction": instruction, "hot_words": hot_words}
        return start_ranks(nproc, "transcribe", given, [str(model), *recordings])
    from kappaspeech.allocator import keep_few_primitives
    from kappaspeech.ranks.start import start_cluster
    from kappaspeech.speech.samples import LONGEST_PIECE_SECONDS

    keep_few_primitives(os.environ)
    cluster = start_cluster()
    # a rank may list a million files, or decode for hours, while others wait
    code = _transcribe(
        cluster.patient(),
        model,
        recordings,
        format_=format_,
        output=output,
        step=step,
        longest=piece_seconds or (_CUE_SECONDS if format_ is Format.srt else LONGEST_PIECE_SECONDS),
        instruction=instruction,
        hot_words=hot_words,
        options={"base": base, "batch_size": batch_size, "max_new_tokens": max_new_tokens, "num_beams": num_beams},
    )
    cluster.close()
    return code


def _transcribe(
    cluster: Cluster,
    model: Path,
    recordings: list[str],
    *,
    format_: Format,
    output: Path | None,
    step: str | None,
    longest: float,
    instruction: str | None,
    hot_words: str | None,
    options: dict[str, Any],
) -> int:
    """The work on all ranks; `options` are those of `open_transcriber`."""
    from kappaspeech.evaluation.clips import ClipReader, find_clips
    from kappaspeech.evaluation.recordings import warn_of_length
    from kappaspeech.ranks.agreement import agreement
    from kappaspeech.speech.hot_words import read_hot_words

    reader = ClipReader()
    clips: list[Clip] = []
    words: tuple[str, ...] = ()
    num_done = code = 0
    chosen: Step = None
    with ExitStack() as opened:
        with agreement(cluster):
            if cluster.rank == 0:
                words = read_hot_words(hot_words)
                clips = find_clips(recordings)
                chosen = _pin(model, step)
                made_by: dict[str, object] = {"max_new_tokens": options["max_new_tokens"], "piece_seconds": longest}
                made_by |= {"instruction": instruction, "num_beams": options["num_beams"], "hot_words": list(words) or None}
                if format_ is Format.jsonl:
                    made_by["model_digest"] = _identify(model, chosen)
                place = open_output(
                    format_,
                    output,
                    names=[clip.name for clip in clips],
                    made_by=made_by,
                    model=str(model),
                    num_ranks=cluster.world_size,
                    opened=opened,
                )
                num_done = place.num_done
                if format_ is not Format.jsonl:
                    _read_first(clips, reader)
        # what rank 0 has found, so that files that come meanwhile are on no rank
        clips, num_done, words, chosen = cluster.broadcast((clips, num_done, words, chosen))
        speed = None
        if num_done < len(clips):
            from kappaspeech.evaluation.clip_job import run_job

            speed = run_job(
                clips,
                # only JSON has a place for it
                replace(_open(model, cluster, chosen, words, options), keeps_confidence=format_ in (Format.json, Format.jsonl)),
                cluster=cluster,
                reader=reader,
                longest_seconds=longest,
                instruction=instruction,
                num_done=num_done,
                keep=lambda transcripts: place.keep(transcripts),
                warn=lambda seconds: warn_of_length(model, seconds),
            )
        with agreement(cluster):
            if cluster.rank == 0:
                code = place.finish(speed)
    return int(cluster.broadcast(code))


def _pin(model: Path, step: str | None) -> Step:
    from kappaspeech.trained.opening import parse_step, pin_step

    chosen = parse_step(step)
    warn_of_best(model, chosen)
    return pin_step(model, chosen)


def _identify(model: Path, step: Step) -> str:
    from kappaspeech.trained.identity import identify

    return identify(model, step=step)


def _read_first(clips: Sequence[Clip], reader: ClipReader) -> None:
    """Read the first clip that can be read, before a model is loaded. Raises the first one's `DataError` if none can."""
    from kappaspeech.errors import DataError

    first: DataError | None = None
    for clip in clips:
        try:
            reader.read_ahead(clip)
            return
        except DataError as error:
            first = first or error
    if first is not None:
        raise first


def _open(model: Path, cluster: Cluster, step: Step, hot_words: Sequence[str], options: dict[str, Any]) -> Transcriber:
    """The model on every rank, the same on all of them, in the arithmetic of the slowest. A collective."""
    from kappaspeech.model.precision import measure_rates, slowest
    from kappaspeech.ranks.agreement import agree, agreement
    from kappaspeech.ranks.hosts import check_alike, check_software
    from kappaspeech.trained.arithmetic import UseArithmetic
    from kappaspeech.trained.opening import choose_device, open_transcriber

    check_software(cluster)
    found: list[str] = []
    with agreement(cluster):
        found.append(_identify(model, step))
    check_alike(cluster, {"the model": found[0]}, remedy="Copy it from one place to all hosts, or share it.")
    device = choose_device(cluster.local_rank)
    use = UseArithmetic.of(slowest(agree(cluster, lambda: measure_rates(device))))
    opened: list[Transcriber] = []
    with agreement(cluster):
        transcriber = open_transcriber(model, step=step, device=device, use=use, **options)
        opened.append(transcriber.with_hot_words(hot_words))
    return opened[0]
