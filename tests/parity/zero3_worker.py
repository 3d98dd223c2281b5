"""One rank of the parity tests: every case of its number of ranks, by the real engine on the real stream.

Arguments: the folder of the tiny models, the file in which rank 0 leaves what each case computed, and, to run only some of
them, names of cases.
"""

from __future__ import annotations

import re
import sys
import zlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file

from kappaspeech.artefacts import digest_file
from kappaspeech.model.text_rows import TextRows, pad_texts
from kappaspeech.ranks.start import start_training_cluster
from kappaspeech.ranks.torch_cluster import TorchCluster
from kappaspeech.runs.new_checkpoint import NewCheckpoint
from kappaspeech.speech.batches import SpeechBatch, empty_batch
from kappaspeech.zero3 import engine as engine_module
from kappaspeech.zero3 import engine_state, partitioning
from kappaspeech.zero3.consolidation import Consolidation
from kappaspeech.zero3.engine import MicroBatch, TrainingEngine
from kappaspeech.zero3.host_copy import HostCopy
from kappaspeech.zero3.orthogonal_updates import keep_directions
from kappaspeech.zero3.trained_states import Updates
from kappaspeech.zero3.weight_swap import averaged_weights
from tests.parity.counting import StepCounter, counting_late_fetches
from tests.parity.steps import CASES, EWC_TEXTS, HELD_CASES, OPTIMIZER, Case, Parts, build_parts, open_stream
from tests.patience import patience


def main(home: Path, output: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    cluster = start_training_cluster(timeout_seconds=patience(60))
    cases = {**CASES.get(cluster.world_size, {}), **HELD_CASES}
    folder = output.with_suffix("")
    results = {name: run_case(home, cases[name], cluster, folder / name) for name in names or CASES[cluster.world_size]}
    if cluster.rank == 0:
        torch.save(results, output)
    cluster.barrier()


def run_case(home: Path, case: Case, cluster: TorchCluster, folder: Path) -> dict[str, Any]:
    parts = build_parts(home, case)
    mapped = [parameter.data for parameter in parts.model.llm.parameters()]
    stream = open_stream(home, parts.tokenizer, rank=cluster.rank, world_size=cluster.world_size, budget=case.budget)
    if case.partition_bytes is not None:
        partitioning._PARTITION_BYTES = case.partition_bytes
    keeping = patch.object(engine_module, "keep_frozen_whole", lambda *_: None) if case.as_deepspeed else nullcontext()
    with keeping:
        engine = TrainingEngine(
            parts.model,
            cluster=cluster,
            deepspeed_config=case.deepspeed_config,
            optimizer=OPTIMIZER,
            micro_batches_per_rank=-(-case.budget.micro_batches_per_step // cluster.world_size),
            ema_decay=case.ema_decay,
        )
    if case.as_deepspeed:
        engine._exchange.close()
    if case.persists_frozen:
        engine.persist_frozen()
    copied = cluster.gather(copied_kilobytes())
    if case.kept_share is not None:
        keep_directions(engine, share=case.kept_share, cluster=cluster)
    if case.classp is not None:
        engine.move_llm(case.classp)
    fisher = hold_weights(engine, parts, case.ewc_weight) if case.ewc_weight is not None else {}
    del mapped
    passes: list[int] = []
    for layer in parts.model.llm.get_decoder().layers:
        # before and not after: a recomputation ends as soon as it has what backward wants
        layer.mlp.register_forward_pre_hook(lambda _mlp, inputs: passes.append(inputs[0].shape[:-1].numel()))
    losses, norms, tokens = [], [], 0
    steps = stream.steps(0)
    for data in steps:
        if data.global_step == case.num_steps:
            break
        num_tokens = sum(cluster.gather(sum(batch.num_target_tokens for batch in data.batches)))
        batches = [
            MicroBatch(*parts.encoder(batch.audio_input, batch.num_frames), label_ids_BL=batch.label_ids)
            for batch in data.batches
        ]
        with StepCounter() as counts, counting_late_fetches(engine) as late:
            result = engine.step(
                batches,
                prefix_ids=parts.prompt.prefix_ids,
                suffix_ids=parts.prompt.suffix_ids,
                num_target_tokens=num_tokens,
                seeds=[0] * len(batches),
                alignment_only=data.global_step < case.alignment_steps,
            )
        losses.append(sum(cluster.gather(result.loss_sum_nats)) / num_tokens)
        norms.append(result.grad_norm)
        tokens += sum(count_tokens(parts, batch) for batch in data.batches)
    steps.close()
    around_average = losses_around_average(engine, parts, batches) if case.ema_decay else []
    computed = {
        "losses": losses,
        "norms": norms,
        "trained": dict(engine.states.gather_result()),
        "frozen": engine.frozen_digests(),
        "layer_passes": len(passes),
        # of all layers' passes, and of the clips that they were for
        "llm_positions": sum(passes),
        "llm_tokens": tokens,
        "first_moments": dict(engine.states.collect("exp_avg", dict.fromkeys(engine.states.shapes(), 0))),
        "copied_kilobytes": copied,
        "around_average": around_average,
        "fisher": fisher,
        # of the last step
        "gathered": counts.gathered,
        "shared": counts.shared,
        "collectives": dict(counts.collectives),
        "reads": dict(counts.reads),
        "late": dict(late),
    }
    if case.saves:
        computed["saved"], computed["received"] = save_known_state(engine, cluster, folder)
    engine.close()
    return computed


def hold_weights(engine: TrainingEngine, parts: Parts, weight: float) -> dict[str, torch.Tensor]:
    """Hold the weights by the Fisher of `EWC_TEXTS`, and return it, whole."""
    from deepspeed.utils import safe_get_full_optimizer_state

    pieces = [parts.tokenizer(text)["input_ids"] for text in EWC_TEXTS]
    silence = empty_batch(parts.encoder.dims.num_mels)
    states = parts.encoder(silence.audio_input, silence.num_frames)
    texts = [MicroBatch(*states, silence.label_ids, TextRows(pad_texts([piece]), 1.0, 0.0)) for piece in pieces]
    held = Consolidation(engine)
    prompt = parts.prompt
    num_tokens = sum(len(piece) - 1 for piece in pieces)
    held.measure(texts, num_tokens=num_tokens, prefix_ids=prompt.prefix_ids, suffix_ids=prompt.suffix_ids)
    held.hold(weight)
    # DeepSpeed gathers what lies beside AdamW's own states
    adamw = engine._engine.optimizer.optimizer
    for partition, fisher in held.fisher.items():
        adamw.state[partition]["fisher"] = fisher
    whole = {item.names[0]: safe_get_full_optimizer_state(item.parameter, "fisher") for item in engine.states.llm_tensors()}
    for partition in held.fisher:
        del adamw.state[partition]["fisher"]
    return {f"llm.{name}": tensor.cpu() for name, tensor in whole.items()}


def save_known_state(engine: TrainingEngine, cluster: TorchCluster, folder: Path) -> tuple[dict[str, str], list[tuple[int, int]]]:
    """Put tensors that depend on their names alone into the engine; digests of the files of the checkpoint that it then makes,
    and of each rank how many numbers it was sent for that, and how many it wrote."""
    shapes = engine.states.shapes()

    def known(name: str, kind: str) -> torch.Tensor:
        seed = torch.Generator().manual_seed(zlib.crc32(f"{name}/{kind}".encode()))
        return torch.randn(shapes[name], generator=seed)

    average = (lambda name: known(name, "average")) if engine.states.keeps_average else None
    engine.states.restore(lambda name: known(name, "weight"), known, average, num_updates=Updates(3, 3))
    shares: list[int] = []

    def choose_copy(num_bytes: int) -> HostCopy:
        shares.append(num_bytes // 4)
        return HostCopy()

    with StepCounter() as counts:
        writing = engine_state.save(
            engine, cluster, cluster.beside(), NewCheckpoint(folder, 3, {}, keep=1), choose_copy=choose_copy
        )
    assert writing.wait(patience(60))
    if (failure := writing.failure()) is not None:
        raise failure
    weights = load_file(folder / "step-000003/trained.safetensors")
    assert all(torch.equal(tensor, known(name, "weight")) for name, tensor in weights.items())
    digests = {path.name: digest_file(path) for path in (folder / "step-000003").glob("*.safetensors")}
    return digests, cluster.gather((counts.received, shares[0]))


def count_tokens(parts: Parts, batch: SpeechBatch) -> int:
    """The LLM's tokens of a batch's clips, each alone."""
    states = [parts.encoder.dims.count_states(count) for count in batch.num_frames.tolist()]
    stacking = parts.model.adaptor.shape.stacking
    return sum(-(-count // stacking) + parts.prompt.num_tokens for count in states) + batch.num_target_tokens


@torch.no_grad()
def losses_around_average(engine: TrainingEngine, parts: Parts, batches: list[MicroBatch]) -> list[float]:
    """The loss in nats of a micro-batch before, with, and after the moving average in the weights' place."""
    losses = []
    for weights in (nullcontext(), averaged_weights(engine), nullcontext()):
        with weights:
            batch = batches[0]
            engine._engine.eval()
            prompt = parts.prompt
            nats = engine._engine(batch.states_BSE, batch.num_states_B, prompt.prefix_ids, prompt.suffix_ids, batch.label_ids_BL)
            losses.append(float(nats[1]))
    return losses


def copied_kilobytes() -> int | None:
    """The part of the mapped model file that has become this process's own memory by being written to."""
    mappings = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    of_file = [mapping for mapping in mappings if mapping.partition("\n")[0].endswith("model.safetensors")]
    counts = [int(number) for mapping in of_file for number in re.findall(r"^Anonymous: +(\d+) kB", mapping, flags=re.MULTILINE)]
    return sum(counts) if counts else None


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
