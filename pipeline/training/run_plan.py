"""A run's plan of itself: its modules are described before ZeRO-3 takes them, and planned at rates that are measured then."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.cluster import Cluster
from pipeline.config import RunConfig
from pipeline.errors import InputError
from pipeline.model.encoder import FrozenWhisperEncoder
from pipeline.model.speech_llm import SpeechLLM
from pipeline.planning.machine import find_products, measure_compute, measure_exchange, slowest
from pipeline.planning.planner import Planner
from pipeline.speech.stream import SpeechStream
from pipeline.training.arithmetic import Arithmetic


def describe_run(config: RunConfig, encoder: FrozenWhisperEncoder, model: SpeechLLM, stream: SpeechStream) -> Planner | str:
    """The planner of a run whose modules are still whole; or why it can't be planned, which is no reason not to train it."""
    try:
        return Planner(config, modules=(encoder, model), clip_seconds=stream.clip_seconds())
    except InputError as error:
        return str(error)


def plan_run(
    planner: Planner | str, *, prompt_tokens: int, cluster: Cluster, device: torch.device, arithmetic: Arithmetic
) -> dict[str, Any]:
    """The plan as JSON, at the rates of the slowest rank, all measuring at once, as they will train. A collective."""
    if isinstance(planner, str):
        return {"error": planner}
    products = find_products(
        planner.sizes,
        planner.batches,
        prompt_tokens=prompt_tokens,
        dtype=arithmetic.torch_dtype,
        encoder_dtype=arithmetic.encoder_torch_dtype,
        device_type=device.type,
    )
    cluster.barrier()
    mine = measure_compute(device, *products)
    mine = measure_exchange(mine, torch.distributed.group.WORLD, device, planner.reduced_dtype)
    rates = slowest(cluster.gather(mine))
    plan = planner.plan(cluster.world_size, rates=rates, prompt_tokens=prompt_tokens, on_gpu=device.type == "cuda")
    return plan.to_json()
