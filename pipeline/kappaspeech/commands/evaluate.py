"""`kappaspeech evaluate`: WER, text perplexity and answers of a run, an export or plain Whisper, on any number of ranks."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kappaspeech.commands.best_step import warn_of_best
from kappaspeech.commands.local_ranks import start_ranks
from kappaspeech.escaping import for_terminal

if TYPE_CHECKING:
    import torch

    from kappaspeech.evaluation.decoding import Decoder
    from kappaspeech.evaluation.evaluate import TestSet
    from kappaspeech.evaluation.wer import Hypothesis
    from kappaspeech.ranks.cluster import Cluster
    from kappaspeech.trained.target import EvaluationTarget


@dataclass(frozen=True)
class _Wanted:
    """The options of a command line, by their names."""

    step: str | None
    data: list[str]
    instruction: str | None
    hot_words: str | None
    text: list[str]
    tasks: list[str]
    base: str | None
    against: Path | None
    normalisers: bool
    compounds: bool
    batch_size: int | None
    num_beams: int | None
    max_new_tokens: int | None
    max_utterances: int | None
    lm_eval: list[str]
    page: bool
    output: Path | None


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
    nproc: Annotated[int | None, typer.Option(min=1, help="Start this many ranks on this host.")] = None,
) -> int:
    """Transcribe test speech, read text, answer tasks; write WER by language, perplexity, accuracy, and every hypothesis."""
    wanted = _Wanted(
        step=step,
        data=data or [],
        instruction=instruction,
        hot_words=hot_words,
        text=text or [],
        tasks=tasks or [],
        base=base,
        against=against,
        normalisers=normalisers,
        compounds=compounds,
        batch_size=batch_size,
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        max_utterances=max_utterances,
        lm_eval=lm_eval or [],
        page=page,
        output=output,
    )
    _check_packages(wanted)
    if nproc is not None:
        return start_ranks(nproc, "evaluate", {**asdict(wanted), "no_page": not page}, [model])
    from kappaspeech.allocator import keep_few_primitives
    from kappaspeech.ranks.start import start_cluster

    keep_few_primitives(os.environ)
    cluster = start_cluster()
    _evaluate(cluster, model, wanted)
    cluster.close()
    return 0


def _check_packages(wanted: _Wanted) -> None:
    from kappaspeech.needed_packages import need
    from kappaspeech.speech.source import need_reader

    need("kappaspeech evaluate", "jiwer", "soundfile", "soxr", "whisper")
    if wanted.page:
        need("--page", "jinja2")
    if wanted.compounds:
        need("--compounds", "kaldialign")
    for shards in wanted.data:
        need_reader(shards)


@dataclass(frozen=True)
class _Prepared:
    """All that a rank reads before a model is loaded; `against` are another evaluation's hypotheses."""

    target: EvaluationTarget
    hot_words: tuple[str, ...]
    output: Path
    against: list[Hypothesis] | None
    test_set: TestSet
    device: torch.device

    @property
    def hypotheses_path(self) -> Path | None:
        """None beside a device or a pipe, where no more files can be written."""
        from kappaspeech.outputs import is_special

        return None if is_special(self.output) else self.output.with_suffix(".hypotheses.jsonl")


def _evaluate(cluster: Cluster, model: str, wanted: _Wanted) -> None:
    """The work on all ranks. A collective."""
    from kappaspeech.evaluation.evaluate import evaluate as run_evaluation
    from kappaspeech.ranks.agreement import agreement
    from kappaspeech.ranks.hosts import check_alike, check_software

    found: list[_Prepared] = []
    with agreement(cluster):
        found.append(_prepare(cluster, model, wanted))
    prepared = found[0]
    target, test_set = prepared.target, prepared.test_set
    check_software(cluster)
    remedy = "Copy it from one place to all hosts, or share it; of a run that still trains, give a --step."
    check_alike(cluster, {"the model": target.identity, **test_set.fingerprints}, remedy=remedy)
    kept: list[Hypothesis] = []
    record = run_evaluation(
        _open(cluster, prepared),
        test_set,
        cluster=cluster,
        hypotheses_path=prepared.hypotheses_path,
        keep=kept.extend,
        step=target.step,
        train_seconds=target.train_seconds,
    )
    assert record is not None, "nothing asked it to stop"
    with agreement(cluster):
        if cluster.rank == 0:
            _report(record, kept, prepared, model, wanted)


def _prepare(cluster: Cluster, model: str, wanted: _Wanted) -> _Prepared:
    """Find the model and read the data. Raises what all ranks must hear of; no collective."""
    from kappaspeech.errors import InputError
    from kappaspeech.evaluation.evaluate import open_test_set, read_hypotheses
    from kappaspeech.evaluation.lm_harness import check_harness
    from kappaspeech.outputs import try_output
    from kappaspeech.runs.contents import EVALUATION_FILE
    from kappaspeech.speech.hot_words import read_hot_words
    from kappaspeech.trained.opening import choose_device, parse_step
    from kappaspeech.trained.target import find_target

    options = {
        "batch_size": wanted.batch_size,
        "num_beams": wanted.num_beams,
        "max_new_tokens": wanted.max_new_tokens,
        "max_utterances": wanted.max_utterances,
    }
    step = parse_step(wanted.step)
    target = find_target(
        model,
        data=wanted.data,
        text=wanted.text,
        tasks=wanted.tasks,
        step=step,
        base=wanted.base,
        options={key: value for key, value in options.items() if value is not None},
        instruction=wanted.instruction,
    )
    hot_words = read_hot_words(wanted.hot_words)
    output = wanted.output or target.folder / EVALUATION_FILE
    if cluster.rank == 0:
        try_output(output)
        warn_of_best(Path(model), step)
    against = None if wanted.against is None else read_hypotheses(wanted.against)
    if wanted.lm_eval:
        if cluster.world_size > 1:
            raise InputError("--lm-eval runs in one process: start it without a launcher, and without --nproc.")
        check_harness(Path(model))
    test_set = open_test_set(
        target.speech,
        target.text,
        target.options,
        read=target.read,
        tasks=target.tasks,
        rank=cluster.rank,
        world_size=cluster.world_size,
    )
    return _Prepared(target, hot_words, output, against, test_set, choose_device(cluster.local_rank))


def _open(cluster: Cluster, prepared: _Prepared) -> Decoder:
    """The model on every rank, in the arithmetic of the slowest: all ranks compute alike. A collective."""
    from kappaspeech.errors import InputError
    from kappaspeech.evaluation.transcribe import Transcriber
    from kappaspeech.model.precision import measure_rates, slowest
    from kappaspeech.ranks.agreement import agree, agreement
    from kappaspeech.trained.arithmetic import UseArithmetic

    use = UseArithmetic.of(slowest(agree(cluster, lambda: measure_rates(prepared.device))))
    opened: list[Decoder] = []
    with agreement(cluster):
        decoder = prepared.target.open_decoder(prepared.device, use)
        if prepared.hot_words:
            if not isinstance(decoder, Transcriber):
                raise InputError("Plain Whisper takes no hot words: leave --hot-words out.")
            decoder = decoder.with_hot_words(prepared.hot_words)
        opened.append(decoder)
    return opened[0]


def _report(record: dict[str, Any], hypotheses: list[Hypothesis], prepared: _Prepared, model: str, wanted: _Wanted) -> None:
    """Add to the record what was asked for beside it, write it and the page, and print the summary. For one rank alone."""
    from kappaspeech.artefacts import write_json, write_text
    from kappaspeech.evaluation.biased_wer import measure_biased
    from kappaspeech.evaluation.evaluate import compare_with, draw_page
    from kappaspeech.evaluation.lm_harness import run_harness
    from kappaspeech.evaluation.report import describe_record, describe_tasks, real_time_factor
    from kappaspeech.evaluation.wer import measure, measure_sensitivity

    target, output = prepared.target, prepared.output
    record["model"] = model
    record["real_time_factor"] = real_time_factor(record["audio_seconds"], record["decode_seconds"])
    if prepared.hot_words:
        record["hot_words"] = measure_biased(hypotheses, prepared.hot_words)
    if wanted.normalisers:
        record["normalisers"] = measure_sensitivity(hypotheses)
    if wanted.compounds:
        record["compounds"] = measure(hypotheses, aligner="kaldialign")
    if prepared.against is not None:
        record["against"] = {"hypotheses": str(wanted.against), **compare_with(prepared.against, hypotheses)}
    if wanted.lm_eval:
        record["lm_eval"] = run_harness(Path(model), wanted.lm_eval, device=str(prepared.device))
    write_json(output, record)
    for line in describe_record(record):
        print(for_terminal(line))
    print(for_terminal(str(output)))
    if prepared.hypotheses_path is None:
        return
    print(for_terminal(str(prepared.hypotheses_path)))
    if wanted.page:
        page = output.with_suffix(".html")
        title, notes = f"{model}, step {target.step}", describe_tasks(record)
        write_text(page, draw_page(title, hypotheses, target.speech, target.read, notes=notes))
        print(for_terminal(str(page)))
