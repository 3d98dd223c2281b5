"""A run's model under ZeRO-3, planned and settled, with the encoder beside it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kappaspeech.config.run_config import RunConfig
from kappaspeech.escaping import for_terminal
from kappaspeech.model.precision import measure_rate
from kappaspeech.ranks.agreement import agreement
from kappaspeech.speech.feature_cache import FeatureCache
from kappaspeech.training.agreed import Agreed
from kappaspeech.training.anchor import Anchor, ask_base, keep_head
from kappaspeech.training.clip_encoder import ClipEncoder
from kappaspeech.training.consolidating import consolidate, trains_llm
from kappaspeech.training.loaded import Loaded
from kappaspeech.training.replay import count_anchored
from kappaspeech.training.run_plan import describe_run, plan_run, settle_by_plan
from kappaspeech.training.surroundings import Surroundings
from kappaspeech.zero3.classp import Classp
from kappaspeech.zero3.engine import TrainingEngine
from kappaspeech.zero3.orthogonal_updates import keep_directions
from kappaspeech.zero3.weight_swap import BasePartitions


@dataclass(frozen=True)
class Partitioned:
    """The engine, and the encoder of its clips. `base` is the LLM as it began, if text is measured against it; `anchor` is what
    it says of replayed text, if that holds the LLM, and `measured` what it says of the text by which a budget is kept.

    `plan` is the planned cost of a step, `matmul_rates` the rates at which each rank's device multiplies.
    """

    engine: TrainingEngine
    encoder: ClipEncoder
    base: BasePartitions | None
    anchor: Anchor | None
    measured: Mapping[str, Anchor]
    plan: Mapping[str, Any]
    matmul_rates: Sequence[float]


def partition(config: RunConfig, agreed: Agreed, loaded: Loaded, around: Surroundings) -> Partitioned:
    """Cut the model into the ranks' partitions, and settle by its plan the options that were left to the memory. A collective."""
    cluster, assembly = around.cluster, loaded.assembly
    prompt_tokens = assembly.prompt.most_tokens(config.data.train, hot=config.data.most_hot_tokens)
    with agreement(cluster):
        planner = describe_run(
            config,
            assembly.encoder,
            assembly.model,
            loaded.stream,
            prompt_tokens=prompt_tokens,
            anchored_tokens=count_anchored(loaded.replay, loaded.measured, num_steps=config.training.num_steps),
        )
        head = keep_head(assembly.model.llm) if config.replay and config.replay.anchor_weight else None
    engine = TrainingEngine(
        assembly.model,
        cluster=cluster,
        deepspeed_config=agreed.deepspeed_config,
        optimizer=config.optimizer,
        micro_batches_per_rank=-(-config.batch.micro_batches_per_step // cluster.world_size),
        on_phase=around.phases.enter,
        ema_decay=config.training.ema_decay,
    )
    if config.classp is not None:
        engine.move_llm(Classp(**config.classp.model_dump()))
    assembly.encoder.to(engine.device)
    # all ranks at once, as they will compute: ranks of one host share its cores
    matmul_rates = cluster.gather(measure_rate(engine.device, agreed.arithmetic.torch_dtype))
    plan = plan_run(
        planner,
        prompt_tokens=prompt_tokens,
        cluster=cluster,
        device=engine.device,
        arithmetic=agreed.arithmetic,
    )
    for settled in settle_by_plan(config, engine, plan):
        if around.is_writer:
            print(for_terminal(settled), file=sys.stderr, flush=True)
    cache = FeatureCache(loaded.cache, asked=loaded.stream.cache_groups()) if loaded.cache else None
    encoder = ClipEncoder(assembly.encoder, engine.device, cache=cache)
    reads = loaded.test_set is not None and (config.data.text or config.data.tasks)
    reads_text = config.evaluation.decode != "replica" and bool(reads)
    base = BasePartitions(engine) if reads_text or loaded.measured else None
    anchor, measured = None, {}
    if config.replay is not None and config.replay.anchor_weight and loaded.replay is not None:
        reached = loaded.replay.reached(config.training.num_steps)
        anchor = ask_base(engine, {place: loaded.replay.pieces[place] for place in reached}, head=head, around=around)
        for language, cut in loaded.measured.items():
            measured[language] = ask_base(engine, dict(enumerate(cut)), head=head, around=around)
    if config.unfreeze.osf is not None:
        keep_directions(engine, share=config.unfreeze.osf.kept_share, cluster=cluster, on_progress=around.phases.tick)
    if config.ewc is not None and trains_llm(assembly.model):
        consolidate(
            engine,
            loaded.consolidated,
            encoder,
            weight=config.ewc.weight,
            num_mels=assembly.encoder.dims.num_mels,
            prompt=assembly.prompt,
            around=around,
        )
    return Partitioned(engine, encoder, base, anchor, measured, plan, matmul_rates)
