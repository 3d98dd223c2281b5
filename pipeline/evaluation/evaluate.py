"""One evaluation: WER on test speech and perplexity on text, shared out over ranks that each hold the whole model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artefacts import write_text
from pipeline.cluster import Cluster, agreement
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.forgetting import TextScore, pool_scores, read_texts, score_texts
from pipeline.evaluation.transcribe import Transcriber
from pipeline.evaluation.wer import Hypothesis, measure
from pipeline.progress import ProgressBar
from pipeline.speech.samples import AudioSample
from pipeline.speech.stream import make_datasets, make_read_options, read_test_batches

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class TestSet:
    """This rank's share of the test speech, in batches, and of the texts by language."""

    batches: tuple[tuple[AudioSample, ...], ...]
    texts: Mapping[str, tuple[str, ...]]
    __test__ = False  # pytest would take it for a class of tests


def read_test_set(config: RunConfig, *, rank: int, world_size: int) -> TestSet:
    """Read what `config` tests on. Raises `DataError`; `ConfigError` where it tests on nothing."""
    if not config.data.test:
        raise ConfigError("data.test is empty, so there is nothing to measure WER on. Name the test shards there.")
    batches = read_test_batches(
        make_datasets(config.data.test),
        batch_size=config.evaluation.batch_size,
        max_samples=config.evaluation.max_utterances,
        rank=rank,
        world_size=world_size,
        read=make_read_options(config.data.read),
    )
    texts = {language: read_texts(Path(path)) for language, path in config.data.text.items()}
    return TestSet(tuple(map(tuple, batches)), {language: tuple(lines[rank::world_size]) for language, lines in texts.items()})


def evaluate(
    transcriber: Transcriber,
    test_set: TestSet,
    *,
    cluster: Cluster,
    hypotheses_path: Path | None,
    step: int,
    train_seconds: float,
    wants_to_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """Transcribe and score the test set on all ranks: the record of `evaluations.jsonl`, on every rank. A collective.

    None on every rank, and nothing written, where `wants_to_stop` has cut one of them short between two batches. Hypotheses are
    written to `hypotheses_path` as JSON lines, by rank 0, in the order of their keys.
    """
    share: tuple[list[Hypothesis], dict[str, TextScore]] | None = None
    with agreement(cluster):
        shown = cluster.rank == 0
        work = sum(map(len, test_set.batches)) + sum(len(lines) for lines in test_set.texts.values())
        with ProgressBar("evaluate", total=work, shown=shown) as bar:
            share = _measure_share(transcriber, test_set, bar.advance, wants_to_stop)
    if None in cluster.gather(share and "whole"):
        return None
    assert share is not None
    mine, scores = share
    hypotheses = sorted((item for share in cluster.gather(mine) for item in share), key=lambda item: item.key)
    shares = cluster.gather(scores)
    with agreement(cluster):
        if cluster.rank == 0 and hypotheses_path is not None:
            hypotheses_path.parent.mkdir(parents=True, exist_ok=True)
            lines = (json.dumps(item.to_json(), ensure_ascii=False) + "\n" for item in hypotheses)
            write_text(hypotheses_path, "".join(lines))
    return {
        "schema_version": SCHEMA_VERSION,
        "step": step,
        "train_seconds": train_seconds,
        "num_utterances": len(hypotheses),
        "wer": measure(hypotheses),
        "text": {language: pool_scores([share[language] for share in shares]).to_json() for language in test_set.texts},
    }


def _measure_share(
    transcriber: Transcriber, test_set: TestSet, advance: Callable[[float], None], wants_to_stop: Callable[[], bool]
) -> tuple[list[Hypothesis], dict[str, TextScore]] | None:
    hypotheses = []
    for batch in test_set.batches:
        if wants_to_stop():
            return None
        texts = transcriber.decode(batch)
        hypotheses += [Hypothesis(s.key, s.language, s.transcript, text) for s, text in zip(batch, texts, strict=True)]
        advance(len(batch))
    scores = {}
    for language, lines in test_set.texts.items():
        if wants_to_stop():
            return None
        scores[language] = score_texts(transcriber.model.llm, transcriber.tokenizer, lines)
        advance(len(lines))
    return hypotheses, scores


def read_hypotheses(path: Path) -> list[Hypothesis]:
    """Read a hypotheses file. Raises `DataError`."""
    try:
        return [Hypothesis(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} can't be read as hypotheses: {error}") from error
