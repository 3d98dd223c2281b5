"""`kappaspeech evaluate`: WER and text perplexity of a run, an export or plain Whisper, on any number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    text: Annotated[
        list[str] | None, typer.Option(help="LANGUAGE=PATH of text to measure perplexity on. Default: the run's.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The base model, if it has moved since the training.")] = None,
    against: Annotated[
        Path | None, typer.Option(help="Another evaluation's X.hypotheses.jsonl, to test the difference to it.")
    ] = None,
    normalisers: Annotated[bool, typer.Option("--normalisers", help="Also print WER under other normalisers.")] = False,
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
    """Transcribe test speech and read text; write WER by language with intervals, perplexity, and every hypothesis."""
    from kappaspeech.artefacts import write_json, write_text
    from kappaspeech.errors import InputError
    from kappaspeech.evaluation.evaluate import compare_with, draw_page, open_test_set, read_hypotheses
    from kappaspeech.evaluation.evaluate import evaluate as run_evaluation
    from kappaspeech.evaluation.lm_harness import check_harness, run_harness
    from kappaspeech.evaluation.wer import measure_sensitivity
    from kappaspeech.model.precision import measure_rates, slowest
    from kappaspeech.outputs import is_special, try_output
    from kappaspeech.ranks.agreement import agreement
    from kappaspeech.ranks.start import start_cluster
    from kappaspeech.training.arithmetic import UseArithmetic
    from kappaspeech.training.evaluated import plan_evaluation
    from kappaspeech.training.trained_run import choose_device, parse_step

    options = {
        "batch_size": batch_size,
        "num_beams": num_beams,
        "max_new_tokens": max_new_tokens,
        "max_utterances": max_utterances,
    }
    cluster = start_cluster()
    with agreement(cluster):
        given = {key: value for key, value in options.items() if value is not None}
        plan = plan_evaluation(model, data=data or [], text=text or [], step=parse_step(step), base=base, options=given)
        target = output or plan.folder / "evaluation.json"
        if cluster.rank == 0:
            try_output(target)
        other = None if against is None else read_hypotheses(against)
        if lm_eval:
            if cluster.world_size > 1:
                raise InputError("--lm-eval runs in one process: start it without a launcher.")
            check_harness(Path(model))
        test_set = open_test_set(
            plan.speech, plan.text, plan.options, read=plan.read, rank=cluster.rank, world_size=cluster.world_size
        )
        device = choose_device(cluster.local_rank)
    # all alike: the slowest rank decides
    use = UseArithmetic.of(slowest(cluster.gather(measure_rates(device))))
    with agreement(cluster):
        decoder = plan.open_decoder(device, use)
    # beside a device or a pipe there is no place for more
    is_alone = is_special(target)
    hypotheses_path = target.with_suffix(".hypotheses.jsonl")
    kept: list[Hypothesis] = []
    record = run_evaluation(
        decoder,
        test_set,
        cluster=cluster,
        hypotheses_path=None if is_alone else hypotheses_path,
        keep=kept.extend,
        step=plan.step,
        train_seconds=plan.train_seconds,
    )
    assert record is not None, "nothing asked it to stop"
    with agreement(cluster):
        if cluster.rank == 0:
            record["model"] = model
            if normalisers:
                record["normalisers"] = measure_sensitivity(kept)
            if other is not None:
                record["against"] = {"hypotheses": str(against), **compare_with(other, kept)}
            if lm_eval:
                record["lm_eval"] = run_harness(Path(model), lm_eval, device=str(device))
            write_json(target, record)
            _print_record(record)
            print(for_terminal(str(target) if is_alone else f"{target}\n{hypotheses_path}"))
            if page and not is_alone:
                write_text(target.with_suffix(".html"), draw_page(f"{model}, step {plan.step}", kept, plan.speech, plan.read))
                print(for_terminal(str(target.with_suffix(".html"))))
    cluster.close()
    return 0


def _print_record(record: dict[str, Any]) -> None:
    for language, report in record["wer"]["languages"].items():
        if report["wer"] is None:
            print(for_terminal(f"WER {language}: no reference word ({report['num_utterances']} utterances)"))
            continue
        low, high = report["interval"]
        size = f"{report['num_utterances']} utterances, {report['reference_length']} words; normaliser {report['normaliser']}"
        edits = ", ".join(f"{report[kind]} {kind}" for kind in ("substitutions", "deletions", "insertions"))
        print(for_terminal(f"WER {language} {report['wer']:7.2%} (95 % of resamples {low:.2%} to {high:.2%}; {size})"))
        print(f"  {edits}; CER {report['cer']:.2%}")
    for name in ("mean", "pooled"):
        if record["wer"][f"{name}_wer"] is not None:
            low, high = record["wer"][f"{name}_interval"]
            print(f"WER {name} {record['wer'][f'{name}_wer']:5.2%} ({low:.2%} to {high:.2%})")
    if record["num_loops"] or record["num_cut"]:
        print(f"cut: {record['num_loops']} in a loop, {record['num_cut']} at the longest length")
    for scheme, report in record.get("normalisers", {}).items():
        rates = ", ".join(f"{language} {rate:.2%}" for language, rate in report["languages"].items() if rate is not None)
        print(for_terminal(f"WER under the normaliser {scheme}: {rates}"))
    if "against" in record:
        for name, gap in {**record["against"]["languages"], "mean": record["against"]["mean"]}.items():
            low, high = gap["interval"]
            print(f"WER {name} minus the other's {gap['difference']:+.2%} ({low:+.2%} to {high:+.2%}; p {gap['p_value']:.2g})")
    for language, text in record["text"].items():
        distance = "" if text["kl_nats"] is None else f", KL from the base {text['kl_nats']:.3f} nats a token"
        print(for_terminal(f"text perplexity {language} {text['perplexity']:.2f} ({text['num_tokens']} tokens){distance}"))
    for task, metrics in record.get("lm_eval", {}).items():
        print(for_terminal(f"{task}: {', '.join(f'{name} {value:.4g}' for name, value in metrics.items())}"))
