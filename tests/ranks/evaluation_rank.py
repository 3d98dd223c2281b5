"""One rank of an evaluation: a few steps of training, then the same tests by replicas and under ZeRO-3; rank 0 leaves them all.

Arguments: the folder of the tiny models, and the file to write.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kappaspeech.config.data_config import DatasetConfig, ReadConfig
from kappaspeech.config.training_config import EvaluationConfig, OptimizerConfig
from kappaspeech.evaluation.answering import _share_out
from kappaspeech.evaluation.choice_items import Item, cut_batches, make_rows, read_items
from kappaspeech.evaluation.choices import score_batches
from kappaspeech.evaluation.evaluate import evaluate, open_test_set, read_hypotheses
from kappaspeech.evaluation.transcribe import Transcriber
from kappaspeech.model.trained import find_base, load_trained_model
from kappaspeech.ranks.cluster import Cluster
from kappaspeech.ranks.start import start_training_cluster
from kappaspeech.zero3.engine import MicroBatch, TrainingEngine
from kappaspeech.zero3.weight_swap import BasePartitions
from tests.parity.steps import BUDGET, Case, build_parts, open_stream
from tests.patience import patience

NUM_STEPS = 2
# (utterances, utterances a batch): several batches a rank, a number that no number of ranks divides, fewer than ranks
CASES = [(6, 2), (5, 1), (2, 1), (6, 6)]


def main(home: Path, output: Path) -> None:
    torch.set_num_threads(1)
    cluster = start_training_cluster(timeout_seconds=patience(60))
    parts = build_parts(home, Case())
    engine = TrainingEngine(
        parts.model,
        cluster=cluster,
        # the smallest tensors stay whole on every rank, as they do in training
        deepspeed_config={"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 100}},
        optimizer=OptimizerConfig(adaptor_learning_rate=2e-2, llm_learning_rate=1e-3),
        micro_batches_per_rank=-(-BUDGET.micro_batches_per_step // cluster.world_size),
    )
    base = BasePartitions(engine)
    results: dict[str, Any] = {"before": _texts(cluster, home, _in_step(engine, parts, base))["text"]}
    _train(engine, parts, cluster, home)
    shape, trained = parts.model.adaptor.shape, dict(engine.states.gather_weights())
    replica = load_trained_model(str(home / "llm"), shape, trained, dtype=torch.float32)
    deciders = {
        "replica": Transcriber(
            replica,
            parts.encoder,
            parts.tokenizer,
            parts.prompt,
            batch_size=2,
            max_new_tokens=12,
            base_weights=find_base(replica),
        ),
        "zero3": _in_step(engine, parts, base),
    }
    for name, decoder in deciders.items():
        found = _texts(cluster, home, decoder)
        results[name] = {"texts": found["text"], "tasks": found["tasks"], "instructions": found["instructions"]}
        results[name]["likelihoods"] = _likelihoods(cluster, home, decoder)
        for case in CASES:
            results[name][str(case)] = _hypotheses(cluster, home, output, decoder, *case)
    # the engine goes on from where it was, and its weights are those that were trained
    after = dict(engine.states.gather_weights())
    assert all(torch.equal(tensor, after[name]) for name, tensor in trained.items())
    _train(engine, parts, cluster, home)
    if cluster.rank == 0:
        output.write_text(json.dumps(results))
    cluster.barrier()


def _in_step(engine: TrainingEngine, parts: Any, base: BasePartitions) -> Transcriber:
    return Transcriber(
        engine.model,
        parts.encoder,
        parts.tokenizer,
        parts.prompt,
        batch_size=2,
        max_new_tokens=12,
        in_step=True,
        base_weights=base.base_weights,
    )


def _train(engine: TrainingEngine, parts: Any, cluster: Cluster, home: Path) -> None:
    for data in open_stream(home, parts.tokenizer, rank=cluster.rank, world_size=cluster.world_size).steps(0):
        if data.global_step == NUM_STEPS:
            break
        num_tokens = sum(cluster.gather(sum(batch.num_target_tokens for batch in data.batches)))
        engine.step(
            [MicroBatch(*parts.encoder(b.audio_input, b.num_frames), label_ids_BL=b.label_ids) for b in data.batches],
            prefix_ids=parts.prompt.prefix_ids,
            suffix_ids=parts.prompt.suffix_ids,
            num_target_tokens=num_tokens,
            seeds=[0] * len(data.batches),
        )


def _texts(cluster: Cluster, home: Path, decoder: Transcriber) -> Any:
    text = {"en": str(home / "text.txt"), "de": str(home / "one.txt")}
    return _evaluate(cluster, home, decoder, EvaluationConfig(max_utterances=1), text, None)


def _likelihoods(cluster: Cluster, home: Path, decoder: Transcriber) -> list[list[tuple[int, float]]]:
    """The likelihood of each choice to the model and to its base, by the choice's number."""
    questions = [item for item in read_items(home / "tasks.jsonl") if isinstance(item, Item)]
    batches = cut_batches(make_rows(decoder.tokenizer, questions))
    found = _share_out(batches, partial(score_batches, decoder.model.llm), decoder, cluster)
    return [sorted((by_model or {}).items()) for by_model in found]


def _hypotheses(cluster: Cluster, home: Path, output: Path, decoder: Transcriber, count: int, batch_size: int) -> Any:
    path = output.with_suffix(".hypotheses.jsonl")
    _evaluate(cluster, home, decoder, EvaluationConfig(max_utterances=count, batch_size=batch_size), {}, path)
    cluster.barrier()
    return [item.to_json() for item in read_hypotheses(path)]


def _evaluate(
    cluster: Cluster, home: Path, decoder: Transcriber, options: EvaluationConfig, text: dict[str, str], path: Path | None
) -> dict[str, Any]:
    speech = [DatasetConfig(shards=str(home / "shards/test/*.tar"))]
    # asked where text is read
    tasks = {"en": str(home / "tasks.jsonl")} if text else {}
    where: dict[str, Any] = {"rank": cluster.rank, "world_size": cluster.world_size}
    test_set = open_test_set(speech, text, options, read=ReadConfig(), tasks=tasks, **where)
    record = evaluate(decoder, test_set, cluster=cluster, hypotheses_path=path, step=0, train_seconds=0.0)
    assert record is not None
    return record


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
