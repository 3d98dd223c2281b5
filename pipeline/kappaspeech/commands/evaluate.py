"""`kappaspeech evaluate`: WER, text perplexity and answers of a run, an export or plain Whisper, on any number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kappaspeech.escaping import for_terminal

if TYPE_CHECKING:
    from kappaspeech.evaluation.wer import Hypothesis


def evaluate(
    model: Annotated[str, typer.Argument(help="A run's folder, an export, or plain Whisper: whisper:NAME or a .pt file.")],
    step: Annotated[str | None, typer.Option(help="Of a run: the checkpoint's step, or best. Default: the last.")] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", "--test", help="Test on these shards. Default: the run's. May be repeated.")
    ] = None,
    instruction: Annotated[
        str | None, typer.Option(help="The user's turn of the prompt for --data, with {audio}. Default: the run's.")
    ] = None,
    hot_words: Annotated[
        str | None,
        typer.Option(help="Words that may be said, as in transcribe; WER of these and of the others is counted apart."),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="LANGUAGE=PATH of text to measure perplexity on. Default: the run's.")
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option(help="LANGUAGE=PATH of questions and instructions. Default: the run's.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The base model, if it has moved since the training.")] = None,
    against: Annotated[
        Path | None, typer.Option(help="Another evaluation's X.hypotheses.jsonl, to test the difference to it.")
    ] = None,
    normalisers: Annotated[bool, typer.Option("--normalisers", help="Also print WER under other normalisers.")] = False,
    compounds: Annotated[
        bool,
        typer.Option("--compounds", help="Also print WER by kaldialign: a compound is right written together or apart."),
    ] = False,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Utterances decoded together.")] = None,
    num_beams: Annotated[int | None, typer.Option(min=1, help="Beams; 1 is greedy.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="The longest text of an utterance.")] = None,
    max_utterances: Annotated[int | None, typer.Option(min=1, help="Test on a fixed part, balanced by language.")] = None,
    lm_eval: Annotated[
        list[str] | None, typer.Option(help="Also run this task of lm-evaluation-harness on an export. May be repeated.")
    ] = None,
    page: Annotated[bool, typer.Option(help="Also write a page of all hypotheses, with the clips of the worst to play.")] = True,
    output: Annotated[Path | None, typer.Option(help="The record (JSON). Default: evaluation.json in MODEL's folder.")] = None,
) -> int:
    """Transcribe test speech, read text, answer tasks; write WER by language, perplexity, accuracy, and every hypothesis."""
    from kappaspeech.needed_packages import need
    from kappaspeech.speech.source import need_reader

    need("kappaspeech evaluate", "jiwer", "soundfile", "soxr", "whisper")
    if page:
        need("--page", "jinja2")
    if compounds:
        need("--compounds", "kaldialign")
    for shards in data or ():
        need_reader(shards)
    from kappaspeech.artefacts import write_json, write_text
    from kappaspeech.errors import InputError
    from kappaspeech.evaluation.biased_wer import measure_biased
    from kappaspeech.evaluation.evaluate import compare_with, draw_page, open_test_set, read_hypotheses
    from kappaspeech.evaluation.evaluate import evaluate as run_evaluation
    from kappaspeech.evaluation.lm_harness import check_harness, run_harness
    from kappaspeech.evaluation.report import describe_record, describe_tasks, real_time_factor
    from kappaspeech.evaluation.transcribe import Transcriber
    from kappaspeech.evaluation.wer import measure, measure_sensitivity
    from kappaspeech.model.precision import measure_rates, slowest
    from kappaspeech.outputs import is_special, try_output
    from kappaspeech.ranks.agreement import agree, agreement
    from kappaspeech.ranks.hosts import check_alike, check_software
    from kappaspeech.ranks.start import start_cluster
    from kappaspeech.runs.contents import EVALUATION_FILE
    from kappaspeech.speech.hot_words import read_hot_words
    from kappaspeech.trained.arithmetic import UseArithmetic
    from kappaspeech.trained.opening import choose_device, parse_step
    from kappaspeech.trained.target import find_target

    options = {
        "batch_size": batch_size,
        "num_beams": num_beams,
        "max_new_tokens": max_new_tokens,
        "max_utterances": max_utterances,
    }
    cluster = start_cluster()
    with agreement(cluster):
        given = {key: value for key, value in options.items() if value is not None}
        measured = find_target(
            model,
            data=data or [],
            text=text or [],
            tasks=tasks or [],
            step=parse_step(step),
            base=base,
            options=given,
            instruction=instruction,
        )
        words = read_hot_words(hot_words)
        target = output or measured.folder / EVALUATION_FILE
        if cluster.rank == 0:
            try_output(target)
        other = None if against is None else read_hypotheses(against)
        if lm_eval:
            if cluster.world_size > 1:
                raise InputError("--lm-eval runs in one process: start it without a launcher.")
            check_harness(Path(model))
        test_set = open_test_set(
            measured.speech,
            measured.text,
            measured.options,
            read=measured.read,
            tasks=measured.tasks,
            rank=cluster.rank,
            world_size=cluster.world_size,
        )
        device = choose_device(cluster.local_rank)
    check_software(cluster)
    remedy = "Copy it from one place to all hosts, or share it; of a run that still trains, give a --step."
    check_alike(cluster, {"the model": measured.identity, **test_set.fingerprints}, remedy=remedy)
    # all ranks compute alike: the slowest one decides
    use = UseArithmetic.of(slowest(agree(cluster, lambda: measure_rates(device))))
    with agreement(cluster):
        decoder = measured.open_decoder(device, use)
        if words:
            if not isinstance(decoder, Transcriber):
                raise InputError("Plain Whisper takes no hot words: leave --hot-words out.")
            decoder = decoder.with_hot_words(words)
    # no more files can be written beside a device or a pipe
    is_alone = is_special(target)
    hypotheses_path = target.with_suffix(".hypotheses.jsonl")
    kept: list[Hypothesis] = []
    record = run_evaluation(
        decoder,
        test_set,
        cluster=cluster,
        hypotheses_path=None if is_alone else hypotheses_path,
        keep=kept.extend,
        step=measured.step,
        train_seconds=measured.train_seconds,
    )
    assert record is not None, "nothing asked it to stop"
    with agreement(cluster):
        if cluster.rank == 0:
            record["model"] = model
            record["real_time_factor"] = real_time_factor(record["audio_seconds"], record["decode_seconds"])
            if words:
                record["hot_words"] = measure_biased(kept, words)
            if normalisers:
                record["normalisers"] = measure_sensitivity(kept)
            if compounds:
                record["compounds"] = measure(kept, aligner="kaldialign")
            if other is not None:
                record["against"] = {"hypotheses": str(against), **compare_with(other, kept)}
            if lm_eval:
                record["lm_eval"] = run_harness(Path(model), lm_eval, device=str(device))
            write_json(target, record)
            for line in describe_record(record):
                print(for_terminal(line))
            print(for_terminal(str(target) if is_alone else f"{target}\n{hypotheses_path}"))
            if page and not is_alone:
                title, notes = f"{model}, step {measured.step}", describe_tasks(record)
                write_text(target.with_suffix(".html"), draw_page(title, kept, measured.speech, measured.read, notes=notes))
                print(for_terminal(str(target.with_suffix(".html"))))
    cluster.close()
    return 0
