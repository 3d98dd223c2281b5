"""The model in training, made ready to be measured: as a replica in each rank, or partitioned as it is."""

from __future__ import annotations

import torch

from kappaspeech.config.run_config import RunConfig
from kappaspeech.evaluation.forgetting import BaseWeights
from kappaspeech.evaluation.transcribe import Transcriber
from kappaspeech.host_memory import free_memory_bytes
from kappaspeech.model.lora import is_factor
from kappaspeech.model.trained import find_base, load_trained_model
from kappaspeech.ranks.cluster import Cluster
from kappaspeech.training.assembly import Assembly
from kappaspeech.zero3.engine import TrainingEngine
from kappaspeech.zero3.weight_swap import BasePartitions

# The share of free memory that a replica may take: the rest is for the decoding.
_USABLE_SHARE = 0.7


def make_transcriber(
    engine: TrainingEngine, assembly: Assembly, config: RunConfig, cluster: Cluster, *, base: BasePartitions | None
) -> Transcriber:
    """A transcriber with the model in its present state, by evaluation.decode. A collective."""
    options = config.evaluation
    decode = options.decode if options.decode != "auto" else choose_decoding(engine, cluster)
    base_weights: BaseWeights | None
    if decode == "zero3":
        model, base_weights = engine.model, base.base_weights if base is not None else None
    else:
        dtype = next(assembly.model.parameters()).dtype
        # LoRA's factors stay float32: their product is rounded once, when it is merged
        trained = {name: tensor if is_factor(name) else tensor.to(dtype) for name, tensor in engine.states.gather_result()}
        model = load_trained_model(
            config.model.llm,
            assembly.adaptor_shape,
            trained,
            dtype=dtype,
            lora=assembly.lora,
            attention=assembly.arithmetic.attention,
        ).to(engine.device)
        base_weights = find_base(model)
    return Transcriber(
        model,
        assembly.encoder,
        assembly.tokenizer,
        assembly.prompt,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
        num_beams=options.num_beams,
        in_step=decode == "zero3",
        chat_template=config.model.chat_template,
        base_weights=base_weights,
    )


def choose_decoding(engine: TrainingEngine, cluster: Cluster) -> str:
    """Return "replica", which is several times faster, if every rank has room for one beside its partition; else "zero3".

    The ranks of a host without GPUs share its memory. A collective: all choose alike.
    """
    needed = engine.model_bytes()
    hosts = cluster.gather((_host(), torch.cuda.is_available()))
    if torch.cuda.is_available():
        # memory that torch holds back for itself is free to it
        free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    else:
        free = free_memory_bytes() // hosts.count(hosts[cluster.rank])
    return "replica" if all(cluster.gather(needed <= _USABLE_SHARE * free)) else "zero3"


def _host() -> str:
    import socket

    return socket.gethostname()
