"""`kappaspeech evaluate`: WER and text perplexity of a run's checkpoint, on any number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def evaluate(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    step: Annotated[str | None, typer.Option(help="The checkpoint's step, or best.  [default: the last]")] = None,
    test: Annotated[list[str] | None, typer.Option(help="Test on these shards, not on the run's. May be repeated.")] = None,
    output: Annotated[Path | None, typer.Option(help="Where the record goes (JSON).  [default: RUN/evaluation.json]")] = None,
) -> int:
    """Transcribe the test set with a run's checkpoint; write WER by language, perplexity of text, and every hypothesis."""
    from pipeline.artefacts import write_json
    from pipeline.cluster import agreement, start_cluster
    from pipeline.config import DatasetConfig
    from pipeline.evaluation.evaluate import evaluate as run_evaluation
    from pipeline.evaluation.evaluate import read_test_set
    from pipeline.training.trained_run import choose_device, open_run, open_transcriber, parse_step

    cluster = start_cluster()
    with agreement(cluster):
        opened = open_run(run, step=parse_step(step))
        config = opened.config
        if test:
            datasets = [DatasetConfig(shards=shards) for shards in test]
            config = config.model_copy(update={"data": config.data.model_copy(update={"test": datasets})})
        test_set = read_test_set(config, rank=cluster.rank, world_size=cluster.world_size)
        transcriber = open_transcriber(
            run,
            step=opened.step,
            device=choose_device(cluster.local_rank),
            batch_size=config.evaluation.batch_size,
            max_new_tokens=config.evaluation.max_new_tokens,
        )
    target = output or run / "evaluation.json"
    record = run_evaluation(
        transcriber,
        test_set,
        cluster=cluster,
        hypotheses_path=target.with_suffix(".hypotheses.jsonl"),
        step=opened.step,
        train_seconds=opened.train_seconds,
    )
    assert record is not None, "nothing asked it to stop"
    if cluster.rank == 0:
        write_json(target, record)
        _print_record(record)
        print(f"{target}\n{target.with_suffix('.hypotheses.jsonl')}")
    cluster.close()
    return 0


def _print_record(record: dict[str, Any]) -> None:
    for language, report in record["wer"]["languages"].items():
        if report["wer"] is None:
            print(f"WER {language}: no reference word ({report['num_utterances']} utterances)")
            continue
        low, high = report["interval"]
        size = f"{report['num_utterances']} utterances, {report['reference_length']} words; normaliser {report['normaliser']}"
        edits = ", ".join(f"{report[kind]} {kind}" for kind in ("substitutions", "deletions", "insertions"))
        print(f"WER {language} {report['wer']:7.2%} (95 % of resamples {low:.2%} to {high:.2%}; {size})")
        print(f"  {edits}; CER {report['cer']:.2%}")
    for name in ("mean", "pooled"):
        if record["wer"][f"{name}_wer"] is not None:
            low, high = record["wer"][f"{name}_interval"]
            print(f"WER {name} {record['wer'][f'{name}_wer']:5.2%} ({low:.2%} to {high:.2%})")
    for language, text in record["text"].items():
        print(f"text perplexity {language} {text['perplexity']:.2f} ({text['num_tokens']} tokens)")
