"""One rank of the parity tests: every case of its number of ranks, by the real engine on the real stream.

Arguments: the folder of the tiny models, and the file in which rank 0 leaves what each case computed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import torch

from pipeline.cluster import TorchCluster, start_training_cluster
from pipeline.training.engine import MicroBatch, TrainingEngine
from tests.parity.steps import BUDGET, CASES, OPTIMIZER, Case, build_parts, open_stream


def main(home: Path, output: Path) -> None:
    torch.set_num_threads(1)
    cluster = start_training_cluster(timeout_seconds=60)
    results = {name: run_case(home, case, cluster) for name, case in CASES[cluster.world_size].items()}
    if cluster.rank == 0:
        torch.save(results, output)
    cluster.barrier()


def run_case(home: Path, case: Case, cluster: TorchCluster) -> dict[str, Any]:
    parts = build_parts(home, case)
    mapped = [parameter.data for parameter in parts.model.llm.parameters()]
    stream = open_stream(home, parts.tokenizer, rank=cluster.rank, world_size=cluster.world_size)
    engine = TrainingEngine(
        parts.model,
        cluster=cluster,
        deepspeed_config=case.deepspeed_config,
        optimizer=OPTIMIZER,
        micro_batches_per_rank=-(-BUDGET.micro_batches_per_step // cluster.world_size),
        ema_decay=case.ema_decay,
    )
    copied = cluster.gather(copied_kilobytes())
    del mapped
    passes: list[None] = []
    for layer in parts.model.llm.get_decoder().layers:
        # before and not after: a recomputation ends as soon as it has what backward wants
        layer.mlp.register_forward_pre_hook(lambda *_: passes.append(None))
    losses, norms = [], []
    steps = stream.steps(0)
    for data in steps:
        if data.global_step == case.num_steps:
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
    steps.close()
    computed = {
        "losses": losses,
        "norms": norms,
        "trained": dict(engine.gather_result()),
        "frozen": engine.frozen_digests(),
        "layer_passes": len(passes),
        "copied_kilobytes": copied,
    }
    engine.close()
    return computed


def copied_kilobytes() -> int | None:
    """How much of the model's file, where it is mapped, has become memory of this process's own by being written to."""
    mappings = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    of_file = [mapping for mapping in mappings if mapping.partition("\n")[0].endswith("model.safetensors")]
    counts = [int(number) for mapping in of_file for number in re.findall(r"^Anonymous: +(\d+) kB", mapping, flags=re.MULTILINE)]
    return sum(counts) if counts else None


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
