"""One evaluation: WER on test speech, perplexity on text and tasks answered, shared out over ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kappaspeech.artefacts import digest_json
from kappaspeech.config.data_config import DatasetConfig, ReadConfig
from kappaspeech.config.run_config import RunConfig
from kappaspeech.config.training_config import EvaluationConfig
from kappaspeech.errors import ConfigError, DataError
from kappaspeech.evaluation.answering import Reports, answer_tasks
from kappaspeech.evaluation.choice_items import Task, digest_items, read_items
from kappaspeech.evaluation.decoding import Decoder
from kappaspeech.evaluation.forgetting import TextScore, count_bytes, cut_windows, pool_scores, read_texts, score_windows
from kappaspeech.evaluation.page import MAX_CLIP_BYTES, MAX_CLIPS, make_page, worst_first
from kappaspeech.evaluation.transcribe import Transcriber
from kappaspeech.evaluation.wer import Hypothesis, compare_hypotheses, measure
from kappaspeech.json_lines import parse_lines, write_lines
from kappaspeech.progress import ProgressBar
from kappaspeech.ranks.agreement import agreement
from kappaspeech.ranks.cluster import Cluster
from kappaspeech.speech.corpus import make_datasets, make_read_options
from kappaspeech.speech.held_out import digest_test_samples, list_test_samples, read_clips, read_share
from kappaspeech.speech.samples import SAMPLE_RATE_HZ, AudioSample

SCHEMA_VERSION = 1
_STAND_IN_SECONDS = 0.2


@dataclass(frozen=True)
class TestSet:
    """This rank's share of the test speech, in batches, and of the texts by language; and all tasks by language.

    `fingerprints` are of the whole of each: ranks must have read the same, or their shares make no whole.
    """

    batches: tuple[tuple[AudioSample, ...], ...]
    texts: Mapping[str, tuple[str, ...]]
    tasks: Mapping[str, tuple[Task, ...]] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    __test__ = False  # pytest would take it for a class of tests


def read_test_set(config: RunConfig, *, rank: int, world_size: int) -> TestSet:
    """Read what `config` tests on. Raises `DataError`; `ConfigError` if it tests on nothing."""
    if not config.data.test:
        raise ConfigError("data.test is empty, so there is nothing to measure WER on. Name the test shards there.")
    data = config.data
    options = config.evaluation
    return open_test_set(data.test, data.text, options, read=data.read, tasks=data.tasks, rank=rank, world_size=world_size)


def open_test_set(
    speech: Sequence[DatasetConfig],
    text: Mapping[str, str],
    options: EvaluationConfig,
    *,
    read: ReadConfig,
    tasks: Mapping[str, str] | None = None,
    rank: int,
    world_size: int,
) -> TestSet:
    """This rank's share of the speech and of the texts (language → path), and the tasks (alike). Raises `DataError`."""
    reading = make_read_options(read)
    refs = list_test_samples(make_datasets(speech), max_samples=options.max_utterances, read=reading)
    batches = read_share(refs, batch_size=options.batch_size, rank=rank, world_size=world_size, read=reading)
    texts = {language: read_texts(Path(path)) for language, path in text.items()}
    items = {language: tuple(read_items(Path(path))) for language, path in (tasks or {}).items()}
    return TestSet(
        tuple(map(tuple, batches)),
        {language: tuple(lines[rank::world_size]) for language, lines in texts.items()},
        items,
        {
            "the test speech": digest_json([options.batch_size, digest_test_samples(refs)]),
            "the text that is scored": digest_json(texts),
            "the tasks that are scored": digest_json({language: digest_items(found) for language, found in items.items()}),
        },
    )


def evaluate(
    decoder: Decoder,
    test_set: TestSet,
    *,
    cluster: Cluster,
    hypotheses_path: Path | None,
    step: int,
    train_seconds: float,
    wants_to_stop: Callable[[], bool] = lambda: False,
    keep: Callable[[Sequence[Hypothesis]], None] = lambda _hypotheses: None,
) -> dict[str, Any] | None:
    """Transcribe and score the test set on all ranks: the record of `evaluations.jsonl`, on every rank. A collective.

    None on every rank, and nothing written, if `wants_to_stop` has cut one of them short between two batches. Hypotheses are
    written to `hypotheses_path` as JSON lines, by rank 0, in the order of their keys; `keep` gets them on every rank.
    """
    began = time.monotonic()
    work = sum(map(len, (*test_set.batches, *test_set.texts.values(), *test_set.tasks.values())))
    with ProgressBar("evaluate", total=work, shown=cluster.rank == 0) as bar:
        mine = _decode_share(decoder, test_set.batches, cluster, bar.advance, wants_to_stop)
        seconds = time.monotonic() - began
        scores = _score_share(decoder, test_set.texts, cluster, bar.advance, wants_to_stop)
        answers: Reports | None = None if scores is None else {}
        if scores is not None and isinstance(decoder, Transcriber):
            answers = answer_tasks(decoder, test_set.tasks, cluster, bar.advance, wants_to_stop)
    if any(cluster.gather(mine is None or scores is None or answers is None)):
        return None
    assert mine is not None
    assert scores is not None
    assert answers is not None
    hypotheses = sorted((item for share in cluster.gather(mine) for item in share), key=lambda item: (item.key, item.dataset))
    keep(hypotheses)
    shares = cluster.gather((seconds, scores))
    with agreement(cluster):
        if cluster.rank == 0 and hypotheses_path is not None:
            hypotheses_path.parent.mkdir(parents=True, exist_ok=True)
            write_lines(hypotheses_path, [item.to_json() for item in hypotheses])
    return {
        "schema_version": SCHEMA_VERSION,
        "step": step,
        "train_seconds": train_seconds,
        "num_utterances": len(hypotheses),
        "num_loops": sum(item.ending == "loop" for item in hypotheses),
        "num_cut": sum(item.ending == "length" for item in hypotheses),
        "audio_seconds": sum(item.seconds for item in hypotheses),
        "decode_seconds": max(seconds for seconds, _ in shares),
        "wer": measure(hypotheses),
        "text": {language: pool_scores([share[language] for _, share in shares]).to_json() for language in scores},
        **answers,
    }


def _decode_share(
    decoder: Decoder,
    batches: Sequence[Sequence[AudioSample]],
    cluster: Cluster,
    advance: Callable[[float], None],
    wants_to_stop: Callable[[], bool],
) -> list[Hypothesis] | None:
    """This rank's hypotheses; None if it was cut short.

    If decoding is a collective, ranks with fewer batches decode stand-ins beside the others, and all stop at once.
    """
    hypotheses: list[Hypothesis] = []
    stopped = False
    with agreement(cluster):
        for batch in batches:
            decoder.check(batch)
            stopped = stopped or wants_to_stop()
            if not decoder.in_step and not stopped:
                hypotheses += _decode(decoder, batch)
                advance(len(batch))
    if decoder.in_step:
        for number, batch in enumerate(_fill_up(batches, max(cluster.gather(len(batches))))):
            stopped = any(cluster.gather(wants_to_stop()))
            if stopped:
                break
            decoded = _decode(decoder, batch)
            if number < len(batches):
                hypotheses += decoded
                advance(len(batch))
    return None if stopped else hypotheses


def _score_share(
    decoder: Decoder,
    texts: Mapping[str, Sequence[str]],
    cluster: Cluster,
    advance: Callable[[float], None],
    wants_to_stop: Callable[[], bool],
) -> dict[str, TextScore] | None:
    """This rank's scores of texts by language; none for what reads no text, and None if it was cut short."""
    if not isinstance(decoder, Transcriber):
        return {}
    llm, base = decoder.model.llm, decoder.base_weights
    windows: dict[str, list[tuple[int, ...]]] = {}
    with agreement(cluster):
        decoder.model.eval()
        windows = {language: cut_windows(decoder.tokenizer, lines) for language, lines in texts.items()}
    counts = cluster.gather({language: len(cut) for language, cut in windows.items()})
    scores: dict[str, TextScore] = {}
    for language, cut in windows.items():
        # all stop, and if each pass is a collective all make as many
        if any(cluster.gather(wants_to_stop())):
            return None
        count = max(rank_counts[language] for rank_counts in counts) if decoder.in_step else len(cut)
        with nullcontext() if decoder.in_step else agreement(cluster):
            nats_sum, kl_nats_sum = score_windows(llm, cut, count=count, base=base)
        num_tokens = sum(map(len, cut)) - len(cut)
        scores[language] = TextScore(nats_sum, num_tokens, count_bytes(texts[language]), kl_nats_sum)
        advance(len(texts[language]))
    return scores


def _decode(decoder: Decoder, batch: Sequence[AudioSample]) -> list[Hypothesis]:
    return [
        Hypothesis(
            sample.key,
            sample.language,
            sample.transcript,
            decoded.text,
            seconds=round(len(sample.waveform) / SAMPLE_RATE_HZ, 3),
            ending=decoded.ending,
            dataset=sample.dataset,
        )
        for sample, decoded in zip(batch, decoder.decode(batch), strict=True)
    ]


def _fill_up(batches: Sequence[Sequence[AudioSample]], count: int) -> Iterator[Sequence[AudioSample]]:
    """The batches, then as many of silence as make `count`."""
    yield from batches
    silence = np.zeros(int(_STAND_IN_SECONDS * SAMPLE_RATE_HZ), dtype=np.float32)
    for _ in range(count - len(batches)):
        yield [AudioSample("", silence, "", "")]


def read_hypotheses(path: Path) -> list[Hypothesis]:
    """Read a hypotheses file. Raises `DataError` if a line isn't whole, or isn't a hypothesis."""
    try:
        records, bad = parse_lines(path.read_bytes(), is_record=_is_hypothesis)
    except OSError as error:
        raise DataError(f"{path} can't be read as hypotheses: {error}") from error
    if bad:
        raise DataError(f"{path} can't be read as hypotheses: line {bad[0].number}: {bad[0].cause}. Evaluate again to write it.")
    return [Hypothesis(**record) for record in records]


def _is_hypothesis(record: Mapping[str, Any]) -> bool:
    texts = ("key", "language", "reference", "hypothesis")
    others: dict[str, type | tuple[type, ...]] = {"seconds": (int, float), "ending": str, "dataset": str}
    kinds: dict[str, type | tuple[type, ...]] = {**dict.fromkeys(texts, str), **others}
    return record.keys() >= set(texts) and all(name in kinds and isinstance(value, kinds[name]) for name, value in record.items())


def compare_with(first: Sequence[Hypothesis], second: Sequence[Hypothesis]) -> dict[str, Any]:
    """`wer.compare_hypotheses`, for files that a user named. Raises `DataError` if they aren't of the same utterances."""
    try:
        return compare_hypotheses(first, second)
    except ValueError as error:
        raise DataError(f"The hypotheses can't be compared: {error}. Evaluate both models on the same test data.") from error


def draw_page(
    title: str, hypotheses: Sequence[Hypothesis], speech: Sequence[DatasetConfig], read: ReadConfig, *, notes: Sequence[str] = ()
) -> str:
    """`page.make_page` with the clips of the worst utterances, read from the shards again. Raises `DataError`."""
    options = make_read_options(read)
    refs = {(ref.dataset, ref.entry.key): ref for ref in list_test_samples(make_datasets(speech), read=options)}
    places = [(item.dataset, item.key) for item, _ in worst_first(hypotheses)[:MAX_CLIPS]]
    worst = [refs[place] for place in places if place in refs]
    return make_page(title, hypotheses, read_clips(worst, max_bytes=MAX_CLIP_BYTES, read=options), notes=notes)
