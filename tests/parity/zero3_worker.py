"""One rank of the parity test: `NUM_STEPS` steps of the real engine on the real stream; rank 0 leaves what it trained.

Arguments: the folder of the tiny models, and the file to write.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from pipeline.cluster import start_training_cluster
from pipeline.training.engine import MicroBatch, TrainingEngine
from tests.parity.steps import BUDGET, NUM_STEPS, OPTIMIZER, build_parts, open_stream


def main(home: Path, output: Path) -> None:
    torch.set_num_threads(1)
    cluster = start_training_cluster(timeout_seconds=60)
    parts = build_parts(home)
    stream = open_stream(home, parts.tokenizer, rank=cluster.rank, world_size=cluster.world_size)
    engine = TrainingEngine(
        parts.model,
        cluster=cluster,
        deepspeed_config={"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}},
        optimizer=OPTIMIZER,
        micro_batches_per_rank=-(-BUDGET.micro_batches_per_step // cluster.world_size),
    )
    losses, norms = [], []
    for data in stream.steps(0):
        if data.global_step == NUM_STEPS:
            break
        num_tokens = sum(cluster.gather(sum(batch.num_target_tokens for batch in data.batches)))
        batches = [
            MicroBatch(*parts.encoder(batch.log_mel, batch.num_frames), label_ids_BL=batch.label_ids) for batch in data.batches
        ]
        result = engine.step(
            batches,
            prefix_ids=parts.prompt.prefix_ids,
            suffix_ids=parts.prompt.suffix_ids,
            num_target_tokens=num_tokens,
            seeds=[0] * len(batches),
        )
        losses.append(sum(cluster.gather(result.loss_sum_nats)) / num_tokens)
        norms.append(result.grad_norm)
    trained = dict(engine.gather_trained())
    frozen = engine.frozen_digests()
    if cluster.rank == 0:
        torch.save({"losses": losses, "norms": norms, "trained": trained, "frozen": frozen}, output)
    cluster.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
