"""A run's plan of itself: its modules are described before ZeRO-3 takes them, and planned at a measured rate."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.config import RunConfig
from pipeline.errors import InputError
from pipeline.model.encoder import FrozenWhisperEncoder
from pipeline.model.speech_llm import SpeechLLM
from pipeline.planning.planner import Planner
from pipeline.speech.stream import SpeechStream

# What of a bare matrix product's rate a training keeps, norms, attention and the optimizer being slower.
_EFFICIENCY = 0.5
# Unknown from inside a run; gloo on one host, and NVLink.
_CPU_GBS, _GPU_GBS = 2.0, 200.0


def describe_run(config: RunConfig, encoder: FrozenWhisperEncoder, model: SpeechLLM, stream: SpeechStream) -> Planner | str:
    """The planner of a run whose modules are still whole; or why it can't be planned, which is no reason not to train it."""
    try:
        return Planner(config, modules=(encoder, model), clip_seconds=stream.clip_seconds())
    except InputError as error:
        return str(error)


def plan_run(
    planner: Planner | str, *, prompt_tokens: int, world_size: int, device: torch.device, matmul_flops_per_second: float
) -> dict[str, Any]:
    """The plan as JSON, on ranks that multiply matrices at this rate."""
    if isinstance(planner, str):
        return {"error": planner}
    on_gpu = device.type == "cuda"
    return planner.plan(
        world_size,
        tflops=_EFFICIENCY * matmul_flops_per_second / 1e12,
        bandwidth_gbs=_GPU_GBS if on_gpu else _CPU_GBS,
        prompt_tokens=prompt_tokens,
        on_gpu=on_gpu,
    ).to_json()
