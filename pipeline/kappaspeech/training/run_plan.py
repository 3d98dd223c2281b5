"""A run's plan of itself: its modules are described before ZeRO-3 takes them, and planned at rates that are measured then.

A run settles by it the options that its configuration leaves to the memory.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

import torch

from kappaspeech.config.run_config import RunConfig
from kappaspeech.errors import InputError
from kappaspeech.host_memory import free_memory_bytes
from kappaspeech.model.arithmetic import Arithmetic
from kappaspeech.model.encoder import SpeechEncoder
from kappaspeech.model.llm import decoder_layers
from kappaspeech.model.recomputation import recompute_layers
from kappaspeech.model.speech_llm import SpeechLLM
from kappaspeech.planning.machine import measure_compute, measure_exchange, slowest
from kappaspeech.planning.plan import GPU_CONTEXT_BYTES
from kappaspeech.planning.planner import Planner
from kappaspeech.ranks.cluster import Cluster
from kappaspeech.speech.stream import SpeechStream
from kappaspeech.zero3.engine import TrainingEngine


def describe_run(
    config: RunConfig,
    encoder: SpeechEncoder,
    model: SpeechLLM,
    stream: SpeechStream,
    *,
    prompt_tokens: int,
    anchored_tokens: int = 0,
) -> Planner | str:
    """The planner of a run whose modules are still whole; or the reason why it has no plan, which doesn't stop training."""
    try:
        return Planner(
            config,
            modules=(encoder, model),
            clip_seconds=stream.clip_seconds(),
            prompt_tokens=prompt_tokens,
            anchored_tokens=anchored_tokens,
        )
    except InputError as error:
        return str(error)


def plan_run(
    planner: Planner | str, *, prompt_tokens: int, cluster: Cluster, device: torch.device, arithmetic: Arithmetic
) -> dict[str, Any]:
    """The plan as JSON, at the rates of the slowest rank, all measuring at once, as they will train. A collective."""
    if isinstance(planner, str):
        return {"error": planner}
    products = planner.find_products(arithmetic, prompt_tokens=prompt_tokens, device_type=device.type)
    cluster.barrier()
    mine = measure_compute(device, *products)
    mine = measure_exchange(mine, torch.distributed.group.WORLD, device, planner.reduced_dtype)
    rates = slowest(cluster.gather(mine))
    plan = planner.plan(
        cluster.world_size,
        rates=rates,
        prompt_tokens=prompt_tokens,
        on_gpu=device.type == "cuda",
        memory_bytes=_measure_memory(cluster, device),
    )
    return plan.to_json()


def settle_by_plan(config: RunConfig, engine: TrainingEngine, plan: Mapping[str, Any]) -> list[str]:
    """Apply the plan to the options that were left to the memory, or without a plan choose what needs least; name the choices."""
    lines = []
    if config.training.activation_checkpointing == "auto":
        llm = engine.model.llm
        # a plan doesn't check whether a family can
        wanted = plan.get("num_recomputed_layers", "auto") if llm.supports_gradient_checkpointing else 0
        number = recompute_layers(llm, wanted)
        lines.append(f"training.activation_checkpointing auto: {number} of {len(decoder_layers(llm))} layers are computed again")
    if plan.get("keeps_frozen"):
        engine.persist_frozen()
        lines.append("stage3_param_persistence_threshold auto: frozen weights stay whole on each rank")
    return lines


def _measure_memory(cluster: Cluster, device: torch.device) -> int:
    """The memory of a rank's device for it, beside other processes' there: the least of all ranks'. A collective."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        # a plan counts the context, which this process has by now
        mine = min(total, free + torch.cuda.memory_reserved(device) + GPU_CONTEXT_BYTES)
        return int(min(cluster.gather(mine)))
    import psutil

    own = psutil.Process().memory_info().rss
    ranks = cluster.gather((socket.gethostname(), own))
    here = [bytes_held for host, bytes_held in ranks if host == socket.gethostname()]
    return int(min(cluster.gather((free_memory_bytes() + sum(here)) // len(here))))
