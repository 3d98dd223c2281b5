"""The engine against plain PyTorch on the same device: tiny models on real shards, the cases of `tests/parity` on one rank."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpu_sections.cases import PRESETS, Case, Context, Differs, Report
from kappaspeech.model.lora import public_names
from kappaspeech.ranks.cluster import SingleProcess
from kappaspeech.ranks.start import start_training_cluster
from kappaspeech.ranks.torch_cluster import TorchCluster
from kappaspeech.scan.checkpoint import open_checkpoint
from kappaspeech.scan.stage import scan
from kappaspeech.selection.rules import Count
from kappaspeech.selection.select import select
from kappaspeech.speech.layouts import find_recordings
from kappaspeech.speech.packing import pack
from kappaspeech.zero3.engine import MicroBatch, TrainingEngine
from tests import tiny
from tests.parity import steps

# As in tests/parity, where they are explained; a GPU's atomic sums come in another order each time.
WEIGHT_TOLERANCE = 2e-5
LOSS_TOLERANCE = {"cpu": 1e-6, "cuda": 1e-5}
BF16_LOSS_TOLERANCE = 1e-3


def cases(_context: Context) -> list[Case]:
    return [Case("float32", compare_float32, 60), Case("bfloat16", compare_bfloat16, 60), Case("presets", compare_presets, 90)]


def presets_of_one_gpu() -> list[str]:
    """The presets whose partitions don't ask for the GPUs of a whole host."""
    zero = {path.stem: json.loads(path.read_text(encoding="utf-8"))["zero_optimization"] for path in PRESETS.glob("*.json")}
    return sorted(name for name, section in zero.items() if section.get("zero_hpz_partition_size", 1) == 1)


def compare_float32(context: Context, report: Report) -> None:
    plain = steps.Case(num_steps=num_steps(context))
    compare(
        context, report, {"kept": plain, "recomputed": replace(plain, checkpointing=True)}, LOSS_TOLERANCE[context.device.type]
    )


def compare_bfloat16(context: Context, report: Report) -> None:
    case = steps.Case(bf16=True, num_steps=num_steps(context))
    compare(context, report, {"kept": case, "recomputed": replace(case, checkpointing=True)}, BF16_LOSS_TOLERANCE)


def num_steps(context: Context) -> int:
    """The number of steps to compare; on a CPU tests/parity takes all of them."""
    return steps.FEW_STEPS if context.is_rehearsal else steps.NUM_STEPS


def compare_presets(context: Context, report: Report) -> None:
    named = {name: steps.Case(preset=name, num_steps=steps.FEW_STEPS) for name in presets_of_one_gpu()}
    compare(context, report, named, LOSS_TOLERANCE[context.device.type])


def compare(context: Context, report: Report, named: dict[str, steps.Case], loss_tolerance: float) -> None:
    """Each case beside plain PyTorch in float32. Raises `Differs` at the end if one isn't within the tolerance."""
    # NVIDIA's images let a GPU multiply ten bits of float32 (TF32), by which two orders of a sum differ beyond any tolerance here
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    home = make_home(context.scratch)
    # the same sums on any machine that only rehearses
    torch.set_num_threads(1 if context.is_rehearsal else torch.get_num_threads())
    first = next(iter(named.values()))
    reference = train_plainly(home, replace(first, bf16=False, checkpointing=False, preset=None), context.device)
    cluster = start_training_cluster(timeout_seconds=60)
    found: dict[str, Any] = {}
    for name, case in named.items():
        computed = train_by_engine(home, case, cluster)
        found[name] = {
            **differences(computed, reference),
            "dtype": "bfloat16" if case.bf16 else "float32",
            "recomputes": case.checkpointing,
            "preset": case.preset,
            "num_steps": case.num_steps,
            "frozen_bit_equal": computed["frozen_bit_equal"],
            "layer_passes": computed["layer_passes"],
        }
        report.add(compared=found, loss_tolerance=loss_tolerance, weight_tolerance=WEIGHT_TOLERANCE)
    wrong = [name for name, item in found.items() if not is_equal(item, loss_tolerance)]
    worst = max(item["loss_relative_difference"] for item in found.values())
    report.add(line=f"{', '.join(found)}: losses to {worst:.1g}" + (f"; not equal: {', '.join(wrong)}" if wrong else ""))
    if wrong:
        raise Differs(f"beyond the tolerance, or not bit-equal where frozen: {', '.join(wrong)}")


def is_equal(item: dict[str, Any], loss_tolerance: float) -> bool:
    weights = item["dtype"] == "bfloat16" or item["weight_difference"] <= WEIGHT_TOLERANCE
    return bool(weights and item["loss_relative_difference"] <= loss_tolerance and item["frozen_bit_equal"])


def differences(computed: dict[str, Any], reference: dict[str, Any]) -> dict[str, float]:
    """The largest differences of losses, gradient norms and those float32 weights that a gradient moves."""

    def relative(key: str) -> float:
        return max(abs(a - b) / abs(b) for a, b in zip(computed[key], reference[key][: len(computed[key])], strict=True))

    weights = [
        float(steps.without_key_bias(name, computed["trained"][name] - tensor).abs().max())
        for name, tensor in reference["trained"].items()
    ]
    return {
        "loss_relative_difference": relative("losses"),
        "norm_relative_difference": relative("norms"),
        "weight_difference": max(weights),
    }


def make_home(scratch: Path) -> Path:
    """The tests' tiny models with packed speech, made once a section."""
    home = scratch / "home"
    if not home.exists():
        tiny.make_llm(home / "llm")
        tiny.make_whisper(home / "whisper.pt")
        tiny.make_recordings(home / "speech", num_clips=12)
        pack(find_recordings(home / "speech"), home / "shards/train", shard_size=5, num_processes=1)
        select(scan(open_checkpoint(str(home / "llm")), cluster=SingleProcess()), Count(4)).write(home / "selection.json")
    return home


def train_by_engine(home: Path, case: steps.Case, cluster: TorchCluster) -> dict[str, Any]:
    """The case's steps on this rank alone."""
    parts = steps.build_parts(home, case)
    engine = TrainingEngine(
        parts.model,
        cluster=cluster,
        deepspeed_config=case.deepspeed_config,
        optimizer=steps.OPTIMIZER,
        micro_batches_per_rank=steps.BUDGET.micro_batches_per_step,
    )
    device, frozen = engine.device, engine.frozen_digests()
    parts.encoder.to(device)
    passes: list[None] = []
    for layer in parts.model.llm.get_decoder().layers:
        # before and not after: a recomputation ends as soon as it has what backward wants
        layer.mlp.register_forward_pre_hook(lambda *_: passes.append(None))
    losses, norms = [], []
    stream = steps.open_stream(home, parts.tokenizer, rank=0, world_size=1).steps(0)
    for data in stream:
        if data.global_step == case.num_steps:
            break
        num_tokens = sum(batch.num_target_tokens for batch in data.batches)
        # ids and counts stay on the host, as in a run
        batches = [
            MicroBatch(*parts.encoder(batch.audio_input.to(device), batch.num_frames), batch.label_ids) for batch in data.batches
        ]
        result = engine.step(
            batches,
            prefix_ids=parts.prompt.prefix_ids,
            suffix_ids=parts.prompt.suffix_ids,
            num_target_tokens=num_tokens,
            seeds=[0] * len(batches),
        )
        losses.append(result.loss_sum_nats / num_tokens)
        norms.append(result.grad_norm)
    stream.close()
    trained = {name: tensor.clone() for name, tensor in engine.states.gather_result()}
    is_equal = engine.frozen_digests() == frozen
    engine.close()
    computed = {"losses": losses, "norms": norms, "trained": trained}
    return {**computed, "frozen_bit_equal": is_equal, "layer_passes": len(passes)}


def train_plainly(home: Path, case: steps.Case, device: torch.device) -> dict[str, Any]:
    """The same steps by AdamW on whole batches: all micro-batches' graphs at once, one division, one backward."""
    parts = steps.build_parts(home, case)
    model, encoder = parts.model.to(device), parts.encoder.to(device)
    names, options = public_names(model), steps.OPTIMIZER
    trained = {names[name]: p for name, p in model.named_parameters() if p.requires_grad}
    groups = [
        {"params": list(model.adaptor.parameters()), "lr": options.adaptor_learning_rate},
        {"params": [p for p in model.llm.parameters() if p.requires_grad], "lr": options.llm_learning_rate},
    ]
    adamw = torch.optim.AdamW(groups, betas=options.betas, eps=options.epsilon, weight_decay=options.weight_decay)
    prompt = parts.prompt.prefix_ids.to(device), parts.prompt.suffix_ids.to(device)
    losses, norms = [], []
    stream = steps.open_stream(home, parts.tokenizer, rank=0, world_size=1).steps(0)
    for data in stream:
        if data.global_step == case.num_steps:
            break
        total: Tensor = torch.zeros((), device=device)
        for batch in data.batches:
            states, counts = encoder(batch.audio_input.to(device), batch.num_frames.to(device))
            total = total + model(states, counts, *prompt, batch.label_ids.to(device))[0]
        num_tokens = sum(batch.num_target_tokens for batch in data.batches)
        adamw.zero_grad()
        (total / num_tokens).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained.values(), options.clip_norm)))
        adamw.step()
        losses.append(float(total.detach()) / num_tokens)
    stream.close()
    return {"losses": losses, "norms": norms, "trained": {name: p.detach().float().cpu() for name, p in trained.items()}}
