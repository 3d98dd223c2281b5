"""Stage 2 as a whole: from a configuration to a run folder. Every rank calls `train`, and every rank returns or raises."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.artefacts import digest_json
from pipeline.cluster import Cluster, agreement, start_training_cluster
from pipeline.config import RunConfig, read_deepspeed_config
from pipeline.errors import SelectionError
from pipeline.evaluation.evaluate import read_test_set
from pipeline.evaluation.forgetting import measure_drift
from pipeline.model.adaptor import AdaptorShape
from pipeline.model.encoder import FrozenWhisperEncoder, load_encoder
from pipeline.model.freezing import unfreeze
from pipeline.model.llm import load_llm, load_tokenizer
from pipeline.model.speech_llm import SpeechLLM, token_embedding_std
from pipeline.model.trained import build_adaptor
from pipeline.scan.checkpoint import open_checkpoint
from pipeline.selection import TensorSelection
from pipeline.speech.batches import SpeechPrompt, make_prompt
from pipeline.speech.schedule import BatchBudget
from pipeline.speech.stream import SpeechStream, make_datasets, make_stream_options
from pipeline.training.engine import TrainingEngine, compute_dtype, digest_tensor
from pipeline.training.hosts import check_alike, software, warn_of_clocks
from pipeline.training.loop import Outcome, TrainingLoop
from pipeline.training.phases import PhaseClock
from pipeline.training.run_folder import RunFolder
from pipeline.training.stopping import refuse_old_stop_file

_LLM_PREFIX = "llm."


@dataclass(frozen=True)
class Parts:
    """What a run is made of, before DeepSpeed takes hold of it."""

    encoder: FrozenWhisperEncoder
    tokenizer: Any
    prompt: SpeechPrompt
    model: SpeechLLM
    selection: TensorSelection | None
    adaptor_shape: AdaptorShape
    base_digest: str


def train(config: RunConfig) -> Outcome:
    """Train as `config` says, resuming from the run folder's last checkpoint where it has one. A collective of all ranks."""
    cluster = start_training_cluster(timeout_seconds=config.training.collective_timeout_seconds)
    check_alike(cluster, software(), remedy="Install the same on all hosts.")
    warn_of_clocks(cluster)
    with agreement(cluster):
        deepspeed_config = read_deepspeed_config(Path(config.deepspeed))
    settings = {
        "the configuration": digest_json(config.model_dump(mode="json")),
        "the DeepSpeed JSON": digest_json(deepspeed_config),
    }
    check_alike(cluster, settings, remedy="Give all hosts the same files, or a file system that they share.")
    _set_threads(config)
    with agreement(cluster):
        refuse_old_stop_file(Path(config.run_dir))
        parts = load_parts(config, dtype=compute_dtype(deepspeed_config))
        stream = _open_stream(config, parts, cluster)
        test_set = read_test_set(config, rank=cluster.rank, world_size=cluster.world_size) if config.data.test else None
    check_alike(cluster, _inputs(parts, stream), remedy="Copy it from one place to all hosts, or share it.")
    before = _digest_frozen(parts, cluster)
    initial = _digest_start(parts)
    folder = RunFolder(Path(config.run_dir))
    fingerprints = {
        "base model": parts.base_digest,
        "frozen tensors": digest_json(before),
        "selection": digest_json(parts.selection.shapes if parts.selection else {}),
        "adaptor": digest_json(asdict(parts.adaptor_shape)),
    }
    num_adaptor = sum(p.numel() for p in parts.model.adaptor.parameters())
    num_llm = sum(p.numel() for p in parts.model.llm.parameters() if p.requires_grad)
    phases = PhaseClock()
    engine = TrainingEngine(
        parts.model,
        cluster=cluster,
        deepspeed_config=deepspeed_config,
        optimizer=config.optimizer,
        micro_batches_per_rank=-(-config.batch.micro_batches_per_step // cluster.world_size),
        phases=phases,
    )
    parts.encoder.to(engine.device)
    loop = TrainingLoop(
        config,
        cluster=cluster,
        engine=engine,
        phases=phases,
        parts=parts,
        folder=folder,
        fingerprints=fingerprints,
        stream=stream,
        test_set=test_set,
    )
    with agreement(cluster):
        if cluster.rank == 0:
            folder.begin(
                config,
                selection=parts.selection,
                facts={
                    "num_trained_parameters": num_adaptor + num_llm,
                    "num_llm_trained_parameters": num_llm,
                    "data_fingerprint": stream.fingerprint,
                    "initial_weights_digest": initial,
                    "checkpoint_digest": parts.base_digest,
                    "adaptor": asdict(parts.adaptor_shape),
                    "dtype": str(compute_dtype(deepspeed_config)).removeprefix("torch."),
                    "deepspeed_config": deepspeed_config,
                    "world_size": cluster.world_size,
                },
            )
    try:
        outcome = loop.run()
        _prove_frozen(engine, parts, cluster, folder, before)
    except Exception:
        if cluster.rank == 0:
            folder.end("failed")
        raise
    _write_drift(engine, config, cluster, folder)
    with agreement(cluster):
        if cluster.rank == 0:
            folder.end(outcome.status, step=outcome.step, reason=outcome.reason)
    engine.close()
    cluster.close()
    return outcome


def _inputs(parts: Parts, stream: SpeechStream) -> dict[str, str]:
    return {
        "the base model": parts.base_digest,
        "the encoder": digest_json(_digest_encoder(parts)),
        "the selection": digest_json(parts.selection.shapes if parts.selection else {}),
        "the prompt": digest_json([parts.prompt.prefix_ids.tolist(), parts.prompt.suffix_ids.tolist()]),
        "the training data": stream.fingerprint,
    }


def _open_stream(config: RunConfig, parts: Parts, cluster: Cluster) -> SpeechStream:
    batch = config.batch
    return SpeechStream(
        make_datasets(config.data.train),
        tokenizer=parts.tokenizer,
        num_mels=parts.encoder.dims.num_mels,
        budget=BatchBudget(batch.max_samples, batch.max_seconds, batch.micro_batches_per_step),
        max_seconds=min(batch.max_seconds, parts.encoder.dims.max_seconds),
        seed=config.seed,
        rank=cluster.rank,
        world_size=cluster.world_size,
        options=make_stream_options(config.data),
        frames_per_position=2 * config.model.adaptor.stacking,
    )


def load_parts(config: RunConfig, *, dtype: torch.dtype) -> Parts:
    """Read models and selection, check that they fit each other, and mark what trains. No rank talks to another here."""
    base_digest = open_checkpoint(config.model.llm).digest
    selection = TensorSelection.read(Path(config.unfreeze.selection)) if config.unfreeze.selection else None
    if selection is not None and selection.checkpoint_digest != base_digest:
        raise SelectionError(
            f"{config.unfreeze.selection} was made from checkpoint {selection.checkpoint_digest[:12]}…; {config.model.llm} is "
            f"{base_digest[:12]}…. Run the scan on this checkpoint and select again."
        )
    encoder = load_encoder(config.model.encoder, pad_to_30s=config.model.pad_to_30s)
    tokenizer = load_tokenizer(config.model.llm)
    llm = load_llm(config.model.llm, dtype=dtype)
    unfreeze(llm, selection.shapes if selection else {})
    if config.training.activation_checkpointing:
        llm.gradient_checkpointing_enable({"use_reentrant": False})
    shape = adaptor_shape(config, encoder, llm)
    model = SpeechLLM(build_adaptor(shape, seed=config.seed).to(dtype), llm)
    prompt = make_prompt(tokenizer, config.model.instruction)
    return Parts(encoder, tokenizer, prompt, model, selection, shape, base_digest)


def adaptor_shape(config: RunConfig, encoder: FrozenWhisperEncoder, llm: Any) -> AdaptorShape:
    """The adaptor's options with what they take from the two models between which it stands."""
    options = config.model.adaptor
    llm_width = int(llm.config.hidden_size)
    return AdaptorShape(
        encoder_width=encoder.dims.width,
        llm_width=llm_width,
        width=options.width or llm_width,
        num_heads=options.num_heads,
        stacking=options.stacking,
        dropout=options.dropout,
        embedding_std=token_embedding_std(llm),
    )


def _set_threads(config: RunConfig) -> None:
    """Share the host's cores among its ranks, unless the configuration or the environment says otherwise."""
    if config.training.num_threads is not None:
        torch.set_num_threads(config.training.num_threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        # torchrun's name, DeepSpeed's
        names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE")
        local = int(next((os.environ[name] for name in names if name in os.environ), "1"))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local))


def _digest_frozen(parts: Parts, cluster: Cluster) -> dict[str, str]:
    """SHA-256 of each frozen tensor as it was loaded; the ranks share the hashing."""
    frozen = [(name, p) for name, p in parts.model.named_parameters() if not p.requires_grad]
    mine = {name: digest_tensor(p) for i, (name, p) in enumerate(frozen) if i % cluster.world_size == cluster.rank}
    return {**_digest_encoder(parts), **{name: digest for part in cluster.gather(mine) for name, digest in part.items()}}


def _digest_start(parts: Parts) -> str:
    """SHA-256 of all weights that training starts from, whatever of them trains: alike in arms that may be compared."""
    adaptor = {name: digest_tensor(tensor) for name, tensor in parts.model.adaptor.state_dict().items()}
    return digest_json({"adaptor": adaptor, "encoder": _digest_encoder(parts), "base": parts.base_digest})


def _digest_encoder(parts: Parts) -> dict[str, str]:
    return {f"whisper.{name}": digest_tensor(tensor) for name, tensor in parts.encoder.whisper.state_dict().items()}


def _prove_frozen(engine: TrainingEngine, parts: Parts, cluster: Cluster, folder: RunFolder, before: Mapping[str, str]) -> None:
    """Write every frozen tensor's digest before and after; raise where one has changed, for then the run proves nothing."""
    after = {**_digest_encoder(parts), **engine.frozen_digests()}
    with agreement(cluster):
        if cluster.rank == 0:
            folder.write_frozen(before, after)


def _write_drift(engine: TrainingEngine, config: RunConfig, cluster: Cluster, folder: RunFolder) -> None:
    """Write how far each selected tensor has moved from the base model."""
    trained = {name.removeprefix(_LLM_PREFIX): tensor for name, tensor in engine.gather_trained() if name.startswith(_LLM_PREFIX)}
    with agreement(cluster):
        if cluster.rank == 0:
            base = load_llm(config.model.llm, dtype=torch.float32)
            folder.write_drift(measure_drift(dict(base.named_parameters()), trained))
