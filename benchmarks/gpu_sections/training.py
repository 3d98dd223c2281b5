"""Training at a shape with random weights, from what surely fits one card to what may not; each way in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from train_shapes import SHAPES, TINY_SETUP, Setup, ShapeTraining

from gpu_sections.cases import PRESETS, Case, Context, Report
from gpu_sections.device import data_sheet_rate
from gpu_sections.tracing import trace
from kappaspeech.ranks.start import start_training_cluster

# MLP matrices among the 100: with those of attention about 1.7, 2.6 and 3.8 billion parameters
_FEW_MLP, _SOME_MLP, _MANY_MLP = 20, 40, 61


def cases(context: Context) -> list[Case]:
    return [Case(name, train(setup), 75) for name, setup in setups(context).items()]


def setups(context: Context) -> dict[str, Setup]:
    """Most valuable first, and of those safe before bold."""
    if context.shape == "tiny":
        recomputed = Setup(preset="zero3_cpu", recomputes=True, num_clips=4, clip_seconds=2.0, num_micro_batches=2)
        return {"recomputed": recomputed, "kept": TINY_SETUP}
    if context.shape == "1b":
        return {
            "recomputed, 16 clips of 15 s": Setup(num_micro_batches=4),
            "kept, 16 clips of 15 s": Setup(num_micro_batches=4, recomputes=False),
            "kept, 32 clips of 15 s": Setup(num_micro_batches=4, recomputes=False, num_clips=32),
        }
    return {
        "2.6 billion, recomputed, 16 clips of 15 s": Setup(num_micro_batches=4, num_mlp=_SOME_MLP),
        "3.8 billion, optimizer on the host, recomputed": Setup(find_offload(), num_micro_batches=4, num_mlp=_MANY_MLP),
        "2.6 billion, recomputed, 32 clips of 15 s": Setup(num_micro_batches=4, num_mlp=_SOME_MLP, num_clips=32),
        "1.7 billion, kept, 16 clips of 7.5 s": Setup(num_micro_batches=4, num_mlp=_FEW_MLP, recomputes=False, clip_seconds=7.5),
        # 71 GB before a step begins
        "3.8 billion, bfloat16 gradients, small buckets": Setup(
            "zero3_lean", num_micro_batches=4, num_mlp=_MANY_MLP, clip_seconds=7.5, gradients="bf16"
        ),
    }


def find_offload() -> str:
    """The preset that keeps the optimizer alone on the host; else the one that keeps the weights there too."""
    for path in sorted(PRESETS.glob("*.json")):
        section = json.loads(path.read_text(encoding="utf-8"))["zero_optimization"]
        if "offload_optimizer" in section and "offload_param" not in section:
            return path.stem
    return "zero3_offload"


def train(setup: Setup) -> Callable[[Context, Report], None]:
    """A case that trains so."""

    def run(context: Context, report: Report) -> None:
        name = {"8b": "llama-3.1-8b", "1b": "llama-3.2-1b"}.get(context.shape, context.shape)
        report.add(setup=vars(setup))
        training = ShapeTraining(SHAPES[name], setup, context.device, cluster=start_training_cluster(timeout_seconds=60))
        report.add(**training.facts)
        # the profiler needs some of the time too
        found = training.measure(seconds=0.5 * context.seconds_left, on_step=lambda taken: report.add(seconds_of_each_step=taken))
        sheet = data_sheet_rate(training.facts["device"])
        if sheet is not None:
            found["mfu_of_the_data_sheet"] = found["mfu"] * training.facts["matmul_flops_per_second"] / sheet
        loss = training.last_loss_nats
        report.add(**found, loss_nats_a_token=loss, line=describe(found, sheet))
        if not torch.isfinite(torch.tensor(loss)):
            raise RuntimeError(f"the loss is {loss}")
        report.add(phase_seconds=training.phase_seconds())
        report.add(profile=trace(training.step, context.device))
        training.close()

    return run


def describe(found: dict[str, float], sheet: float | None) -> str:
    of_sheet = f" ({found['mfu_of_the_data_sheet']:.1%} of the data sheet)" if sheet is not None else ""
    return (
        f"{found['tokens_per_second']:,.0f} tokens/s, {found['audio_seconds_per_second']:,.0f} audio-s/s, MFU {found['mfu']:.1%}"
        f"{of_sheet}, hardware {found['hardware_utilisation']:.1%}, peak {found['peak_memory_bytes'] / 1e9:.1f} GB, "
        f"{found['seconds_per_step']:.3g} s a step"
    )
