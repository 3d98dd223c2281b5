"""Stage 2 as a whole: from a configuration to a run folder. Every rank calls `train`, and every rank returns or raises.

`_train` has the steps in order: agree, load, partition, take steps, prove.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from kappaspeech.config.run_config import RunConfig
from kappaspeech.errors import RankFailure, TrainingError
from kappaspeech.model.lora import lora_to_record
from kappaspeech.outputs import sweep
from kappaspeech.ranks import flight_recorder
from kappaspeech.ranks.agreement import agreement
from kappaspeech.ranks.cluster import TrainingCluster
from kappaspeech.ranks.launch_parent import LaunchParent
from kappaspeech.ranks.liveness import voice
from kappaspeech.ranks.rendezvous import find_launch
from kappaspeech.ranks.start import start_training_cluster
from kappaspeech.redaction import redact
from kappaspeech.runs.contents import COLLECTIVES_FOLDER
from kappaspeech.runs.folder import RunFolder
from kappaspeech.runs.lease import Lease, make_start_id
from kappaspeech.runs.records import RunLog
from kappaspeech.training.agreed import Agreed, agree_on_settings
from kappaspeech.training.cadences import make_cadences
from kappaspeech.training.drift import write_drift
from kappaspeech.training.forecast import Forecast, read_alignment_work
from kappaspeech.training.frozen_check import check_frozen
from kappaspeech.training.loaded import Loaded, load
from kappaspeech.training.loop import Outcome, TrainingLoop
from kappaspeech.training.loop_state import LoopState
from kappaspeech.training.needs import check_packages
from kappaspeech.training.partitioned import Partitioned, partition
from kappaspeech.training.phases import PhaseClock
from kappaspeech.training.saving import Saver
from kappaspeech.training.stalls import watch_training
from kappaspeech.training.stepper import Stepper
from kappaspeech.training.stopping import StopRequest
from kappaspeech.training.surroundings import Surroundings

_LAST_WORDS_SECONDS = 5.0


def train(config: RunConfig, *, on_fatal: Callable[[RankFailure], None] = lambda _failure: None) -> Outcome:
    """Train as `config` says, resuming from the run folder's last checkpoint if it has one. A collective of all ranks.

    `on_fatal` is called with the failure that ends a stuck process, in place of an error raised.
    """
    with flight_recorder.recording(Path(config.run_dir) / COLLECTIVES_FOLDER, os.environ):
        return _train_together(config, on_fatal=on_fatal)


def _train_together(config: RunConfig, *, on_fatal: Callable[[RankFailure], None]) -> Outcome:
    options = config.training
    cluster = start_training_cluster(timeout_seconds=options.collective_timeout_seconds)
    lease = Lease(Path(config.run_dir), cluster.broadcast(make_start_id() if cluster.rank == 0 else None))
    try:
        with agreement(cluster):
            check_packages(config)
            if cluster.rank == 0:
                lease.acquire()
                flight_recorder.make_room(lease.folder / COLLECTIVES_FOLDER)
                sweep(lease.folder)
                sweep(RunFolder(lease.folder).hypotheses)
        outcome = _train_watched(config, cluster, lease, on_fatal=on_fatal)
    finally:
        lease.release()
    cluster.close()
    return outcome


def _train_watched(
    config: RunConfig, cluster: TrainingCluster, lease: Lease, *, on_fatal: Callable[[RankFailure], None]
) -> Outcome:
    options = config.training
    phases, folder = PhaseClock(), RunFolder(Path(config.run_dir), start_id=lease.start_id)
    launched = find_launch(os.environ).launcher != "none"
    stop = StopRequest(
        folder.path,
        budget_seconds=options.time_budget_seconds,
        launcher=LaunchParent() if launched and options.stop_without_launcher else None,
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
        collectives=folder.path / COLLECTIVES_FOLDER,
    )
    try:
        # an error that leaves the watch names the rank that caused it
        with watch:
            return _train(config, Surroundings(cluster, folder, lease, phases, stop, watch))
    except Exception as error:
        if cluster.rank == (voice(error) if isinstance(error, RankFailure) else 0):
            folder.fail(redact(str(error)))
        raise


def _train(config: RunConfig, around: Surroundings) -> Outcome:
    agreed = agree_on_settings(config, around)
    loaded = load(config, agreed, around)
    partitioned = partition(config, agreed, loaded, around)
    outcome = _take_steps(config, agreed, loaded, partitioned, around)
    _prove(config, loaded, partitioned, around)
    with agreement(around.cluster):
        if around.is_writer:
            around.folder.end(outcome.status, step=outcome.step, reason=outcome.reason)
    partitioned.engine.close()
    return outcome


def _record_start(config: RunConfig, agreed: Agreed, loaded: Loaded, partitioned: Partitioned, around: Surroundings) -> None:
    """Record what is trained, from which weights, in which arithmetic, and the plan's cost. A collective."""
    assembly, arithmetic = loaded.assembly, agreed.arithmetic
    facts = {
        "num_trained_parameters": loaded.num_adaptor + loaded.num_llm,
        "num_llm_trained_parameters": loaded.num_llm,
        "data_fingerprint": loaded.stream.fingerprint,
        "initial_weights_digest": loaded.initial,
        "checkpoint_digest": assembly.base_digest,
        "adaptor": asdict(assembly.adaptor_shape),
        "initial_adaptor": assembly.first_adaptor and assembly.first_adaptor.to_json(),
        "lora": lora_to_record(assembly.lora),
        "prompt": assembly.prompt.to_json(),
        "attn_implementation": arithmetic.attention,
        "packs": assembly.model.packs,
        "encoder_dtype": arithmetic.encoder_dtype,
        "dtype": arithmetic.dtype,
        "dtype_reason": arithmetic.reason,
        "dtype_flops_per_second": arithmetic.flops_per_second,
        "deepspeed_config": agreed.deepspeed_config,
        "world_size": around.cluster.world_size,
        "matmul_flops_per_second": partitioned.matmul_rates,
        "plan": partitioned.plan,
    }
    with agreement(around.cluster):
        if around.is_writer:
            around.folder.begin(config, selection=assembly.selection, rule=assembly.rule, facts=facts)


def _take_steps(config: RunConfig, agreed: Agreed, loaded: Loaded, partitioned: Partitioned, around: Surroundings) -> Outcome:
    """Train from the folder's last checkpoint on. Raises `TrainingError` if the folder can't be used."""
    state = LoopState(config, loaded.stream)
    forecast = Forecast(config.training, alignment_work=read_alignment_work(partitioned.plan))
    saver = Saver(partitioned.engine, state, around, fingerprints=loaded.fingerprints, keep=config.training.keep_checkpoints)
    with _explaining(around.folder.path), ExitStack() as opened:
        last = saver.find_last()
        # A start that is refused leaves what the checkpoints were trained by on record. One that breaks from here on is said to
        # have failed.
        _record_start(config, agreed, loaded, partitioned, around)
        step = saver.restore(last)
        log = None
        with agreement(around.cluster):
            if around.is_writer:
                # the rest, written when it is closed, may be what a full disk refuses
                log = opened.enter_context(RunLog(around.folder.path, resume_step=step, check=around.lease.check, config=config))
        stepper = Stepper(config, loaded, partitioned, state, around, log=log)
        cadences = make_cadences(config, loaded, partitioned, state, around, saver=saver, log=log, forecast=forecast)
        loop = TrainingLoop(loaded.stream, stepper.step, state, around, cadences=cadences, forecast=forecast)
        outcome = loop.run(step, config.training.num_steps)
        if log is not None and outcome.reason is not None:
            log.hurry()
        return outcome


@contextmanager
def _explaining(run_dir: Path) -> Iterator[None]:
    """Turn an `OSError` into a `TrainingError` that names the place, and says how to continue."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{run_dir} can't be used on {socket.gethostname()}: {error}. Make room or mend the disk, and start the same command "
            "again: it continues from the last checkpoint."
        ) from error


def _prove(config: RunConfig, loaded: Loaded, partitioned: Partitioned, around: Surroundings) -> None:
    """Prove that every frozen tensor is bit-equal, and record the distance that each trained one has moved. A collective."""
    with agreement(around.cluster):
        around.lease.check()
    check_frozen(partitioned.engine, loaded.assembly, around.cluster, around.folder, loaded.frozen)
    write_drift(partitioned.engine, loaded.assembly, config, around.cluster, around.folder)
