"""Stage 2 as a whole: from a configuration to a run folder. Every rank calls `train`, and every rank returns or raises."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch

from kappaspeech.allocator import keep_freed_memory
from kappaspeech.artefacts import digest_json
from kappaspeech.config.deepspeed_config import read_deepspeed_config
from kappaspeech.config.run_config import RunConfig
from kappaspeech.errors import DataError, RankFailure
from kappaspeech.escaping import for_terminal
from kappaspeech.evaluation.evaluate import read_test_set
from kappaspeech.model.lora import lora_to_record
from kappaspeech.model.precision import measure_rate
from kappaspeech.outputs import sweep
from kappaspeech.processors import count_cores
from kappaspeech.ranks.agreement import agreement
from kappaspeech.ranks.cluster import Cluster
from kappaspeech.ranks.hosts import check_alike, software, warn_of_clocks
from kappaspeech.ranks.liveness import Watch, voice
from kappaspeech.ranks.rendezvous import find_launch
from kappaspeech.ranks.start import start_training_cluster
from kappaspeech.redaction import redact
from kappaspeech.speech.feature_cache import FeatureCache, FeatureCacheOptions
from kappaspeech.speech.overlap import find_overlap
from kappaspeech.speech.schedule import BatchBudget
from kappaspeech.speech.stream import Corpus, SpeechStream, make_datasets, make_read_options, make_stream_options
from kappaspeech.training.arithmetic import choose_arithmetic
from kappaspeech.training.encoding import ClipEncoder
from kappaspeech.training.engine import TrainingEngine
from kappaspeech.training.kept_prompt import digest_prompt_source, settle_prompt
from kappaspeech.training.launcher import Launcher
from kappaspeech.training.lease import Lease, make_start_id
from kappaspeech.training.loop import Outcome, TrainingLoop
from kappaspeech.training.parts import Parts, digest_trained, load_parts
from kappaspeech.training.phases import PhaseClock
from kappaspeech.training.proof import digest_encoder, digest_frozen, digest_start, prove_frozen, write_drift
from kappaspeech.training.run_folder import RunFolder
from kappaspeech.training.run_plan import describe_run, plan_run, settle_by_plan
from kappaspeech.training.stalls import watch_training
from kappaspeech.training.stopping import StopRequest, refuse_old_stop_file

_LAST_WORDS_SECONDS = 5.0
# at a start all ranks wait for this; `doctor` compares more
_MOST_COMPARED_TEXTS = 2_000


def train(config: RunConfig, *, on_fatal: Callable[[RankFailure], None] = lambda _failure: None) -> Outcome:
    """Train as `config` says, resuming from the run folder's last checkpoint where it has one. A collective of all ranks.

    `on_fatal` is told of what ends a process that is stuck, in place of an error raised.
    """
    options = config.training
    cluster = start_training_cluster(timeout_seconds=options.collective_timeout_seconds)
    lease = Lease(Path(config.run_dir), cluster.broadcast(make_start_id() if cluster.rank == 0 else None))
    with agreement(cluster):
        if cluster.rank == 0:
            lease.acquire()
            sweep(lease.folder)
            sweep(RunFolder(lease.folder).hypotheses)
    try:
        outcome = _train_watched(config, cluster, lease, on_fatal=on_fatal)
    finally:
        lease.release()
    cluster.close()
    return outcome


def _train_watched(config: RunConfig, cluster: Cluster, lease: Lease, *, on_fatal: Callable[[RankFailure], None]) -> Outcome:
    options = config.training
    phases, folder = PhaseClock(), RunFolder(Path(config.run_dir), start_id=lease.start_id)
    launched = find_launch(os.environ).launcher != "none"
    stop = StopRequest(
        folder.path,
        budget_seconds=options.time_budget_seconds,
        launcher=Launcher() if launched and options.stop_without_launcher else None,
    )

    def end(failure: RankFailure) -> None:
        if cluster.rank == voice(failure):
            # a file system that hangs may be the very cause
            writer = threading.Thread(target=folder.fail, args=(str(failure),), daemon=True)
            writer.start()
            writer.join(_LAST_WORDS_SECONDS)
        on_fatal(failure)

    watch = watch_training(
        cluster,
        phases,
        stall_seconds=options.stall_seconds,
        collective_timeout_seconds=options.collective_timeout_seconds,
        wish=lambda: stop.known_reason,
        on_fatal=end,
    )
    try:
        # outside of the watch it is known which rank was the cause
        with watch:
            return _train(config, cluster, phases=phases, folder=folder, stop=stop, watch=watch, lease=lease)
    except Exception as error:
        if cluster.rank == (voice(error) if isinstance(error, RankFailure) else 0):
            folder.fail(redact(str(error)))
        raise


def _train(
    config: RunConfig,
    cluster: Cluster,
    *,
    phases: PhaseClock,
    folder: RunFolder,
    stop: StopRequest,
    watch: Watch,
    lease: Lease,
) -> Outcome:
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
    if not torch.cuda.is_available():
        keep_freed_memory()
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    arithmetic = choose_arithmetic(config, deepspeed_config, cluster=cluster, device=device, folder=folder)
    deepspeed_config = arithmetic.resolve(deepspeed_config)
    if cluster.rank == 0:
        print(for_terminal(arithmetic.line), file=sys.stderr, flush=True)
    with agreement(cluster):
        refuse_old_stop_file(Path(config.run_dir))
        parts = load_parts(config, arithmetic)
        encoder_digests = digest_encoder(parts)
        cache_options = feature_cache_options(config, parts, encoder_digests)
        stream = _open_stream(config, parts, cluster, cache_options)
        test_set = read_test_set(config, rank=cluster.rank, world_size=cluster.world_size) if config.data.test else None
        # the first start says it
        if cluster.rank == 0 and config.data.test and not (folder.path / "run.json").exists():
            _warn_of_overlap(config, stream)
    parts = replace(parts, prompt=settle_prompt(config, parts.tokenizer, cluster=cluster, folder=folder))
    check_alike(
        cluster, _inputs(config, parts, encoder_digests, stream), remedy="Copy it from one place to all hosts, or share it."
    )
    frozen = digest_frozen(parts, cluster)
    initial = digest_start(parts, encoder_digests)
    fingerprints = {
        "base model": parts.base_digest,
        "encoder": digest_json({**encoder_digests, "pad_to_30s": parts.encoder.pad_to_30s}),
        "frozen tensors": digest_json(frozen),
        "selection": digest_trained(config.unfreeze, parts.selection),
        "adaptor": digest_json(asdict(parts.adaptor_shape)),
        "prompt": digest_json(parts.prompt.to_json()),
        "moving average": f"decay {config.training.ema_decay}",
    }
    num_adaptor = sum(p.numel() for p in parts.model.adaptor.parameters())
    num_llm = sum(p.numel() for p in parts.model.llm.parameters() if p.requires_grad)
    with agreement(cluster):
        planner = describe_run(config, parts.encoder, parts.model, stream)
    engine = TrainingEngine(
        parts.model,
        cluster=cluster,
        deepspeed_config=deepspeed_config,
        optimizer=config.optimizer,
        micro_batches_per_rank=-(-config.batch.micro_batches_per_step // cluster.world_size),
        phases=phases,
        ema_decay=config.training.ema_decay,
    )
    parts.encoder.to(engine.device)
    # all at once, as they will compute: ranks of one host share its cores
    matmul_rates = cluster.gather(measure_rate(engine.device, arithmetic.torch_dtype))
    plan = plan_run(
        planner,
        prompt_tokens=parts.prompt.prefix_ids.numel() + parts.prompt.suffix_ids.numel(),
        cluster=cluster,
        device=engine.device,
        arithmetic=arithmetic,
    )
    for settled in settle_by_plan(config, engine, plan):
        if cluster.rank == 0:
            print(for_terminal(settled), file=sys.stderr, flush=True)
    loop = TrainingLoop(
        config,
        cluster=cluster,
        engine=engine,
        phases=phases,
        stop=stop,
        watch=watch,
        parts=parts,
        folder=folder,
        lease=lease,
        fingerprints=fingerprints,
        stream=stream,
        test_set=test_set,
        peak_flops_per_second=sum(matmul_rates),
        encoder=ClipEncoder(parts.encoder, engine.device, cache=FeatureCache(cache_options) if cache_options else None),
    )
    with agreement(cluster):
        if cluster.rank == 0:
            folder.begin(
                config,
                selection=parts.selection,
                rule=parts.rule,
                facts={
                    "num_trained_parameters": num_adaptor + num_llm,
                    "num_llm_trained_parameters": num_llm,
                    "data_fingerprint": stream.fingerprint,
                    "initial_weights_digest": initial,
                    "checkpoint_digest": parts.base_digest,
                    "adaptor": asdict(parts.adaptor_shape),
                    "lora": lora_to_record(parts.lora),
                    "prompt": parts.prompt.to_json(),
                    "attn_implementation": arithmetic.attention,
                    "encoder_dtype": arithmetic.encoder_dtype,
                    "dtype": arithmetic.dtype,
                    "dtype_reason": arithmetic.reason,
                    "dtype_flops_per_second": arithmetic.flops_per_second,
                    "deepspeed_config": deepspeed_config,
                    "world_size": cluster.world_size,
                    "matmul_flops_per_second": matmul_rates,
                    "plan": plan,
                },
            )
    outcome = loop.run()
    with agreement(cluster):
        lease.check()
    prove_frozen(engine, parts, cluster, folder, {**encoder_digests, **frozen})
    write_drift(engine, parts, config, cluster, folder)
    with agreement(cluster):
        if cluster.rank == 0:
            folder.end(outcome.status, step=outcome.step, reason=outcome.reason)
    engine.close()
    return outcome


def _inputs(config: RunConfig, parts: Parts, encoder_digests: Mapping[str, str], stream: SpeechStream) -> dict[str, str]:
    return {
        "the base model": parts.base_digest,
        "the encoder": digest_json(encoder_digests),
        "the selection": digest_json(parts.selection.shapes if parts.selection else {}),
        "the tokenizer": digest_prompt_source(config, parts.tokenizer),
        "the training data": stream.fingerprint,
    }


def _warn_of_overlap(config: RunConfig, stream: SpeechStream) -> None:
    """Say where what is tested on is trained on: word error rates then tell what was learned by heart."""
    read = make_read_options(config.data.read)
    test = [Corpus(dataset, read) for dataset in make_datasets(config.data.test)]
    try:
        overlap = find_overlap(stream.corpora, test, read, most_texts=_MOST_COMPARED_TEXTS)
    except DataError as error:
        print(for_terminal(f"warning: training and test data can't be compared: {error}"), file=sys.stderr, flush=True)
        return
    if overlap.found:
        print(for_terminal(f"warning: training and test data share: {overlap.found}"), file=sys.stderr, flush=True)


def feature_cache_options(config: RunConfig, parts: Parts, encoder_digests: Mapping[str, str]) -> FeatureCacheOptions | None:
    """Where states are kept, if they are: apart for each encoder, and for each way of coming to its input."""
    data, encoder = config.data, parts.encoder
    if data.feature_cache_dir is None:
        return None
    made_of = {
        "encoder": encoder_digests,
        "pad_to_30s": encoder.pad_to_30s,
        "max_seconds": min(config.batch.max_seconds, encoder.dims.max_seconds),
        "over_long": data.over_long,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
    }
    return FeatureCacheOptions(data.feature_cache_dir, digest_json(made_of), int(data.feature_cache_gb * 2**30))


def _open_stream(config: RunConfig, parts: Parts, cluster: Cluster, cache: FeatureCacheOptions | None) -> SpeechStream:
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
        options=replace(make_stream_options(config.data), feature_cache=cache),
        frames_per_position=2 * config.model.adaptor.stacking,
    )


def _set_threads(config: RunConfig) -> None:
    """Share the host's cores among its ranks, unless the configuration or the environment says otherwise."""
    if config.training.num_threads is not None:
        torch.set_num_threads(config.training.num_threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        # torchrun's name, DeepSpeed's
        names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE")
        local = int(next((os.environ[name] for name in names if name in os.environ), "1"))
        torch.set_num_threads(max(1, count_cores() // local))
