"""This project's own training for `train.py`: its stream and its engine under ZeRO-3, in one of the ways that a run may take."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from train_peers import Step

from kappaspeech.config.run_config import RunConfig, read_run_config
from kappaspeech.config.training_config import OptimizerConfig
from kappaspeech.model.arithmetic import Arithmetic
from kappaspeech.model.precision import measure_rates
from kappaspeech.ranks.start import start_training_cluster
from kappaspeech.speech.batches import SpeechBatch
from kappaspeech.speech.corpus import SpeechDataset
from kappaspeech.speech.feature_cache import FeatureCache, FeatureCacheOptions
from kappaspeech.speech.layouts import Recording
from kappaspeech.speech.packing import pack
from kappaspeech.speech.schedule import BatchBudget
from kappaspeech.speech.stream import SpeechStream, StreamOptions
from kappaspeech.training.assembly import Assembly, assemble
from kappaspeech.training.clip_encoder import ClipEncoder
from kappaspeech.zero3.engine import MicroBatch, TrainingEngine

MICRO_BATCH, ACCUMULATE = 4, 2
STEP_SIZE = MICRO_BATCH * ACCUMULATE
MAX_SECONDS = 120.0
OPTIMIZER = OptimizerConfig(adaptor_learning_rate=3e-4, llm_learning_rate=1.5e-4, schedule="constant")
REPOSITORY = Path(__file__).parents[1]
PRESET = REPOSITORY / "ds_configs/zero3_cpu.json"
RECIPE = REPOSITORY / "launch/configs/quickstart.yaml"


@dataclass(frozen=True)
class Way:
    """A way that our own stream and engine train: `packs` clips in one row, `keeps` the encoder's states of an earlier epoch."""

    packs: bool = False
    keeps: bool = False


WAYS = {"padded_rows": Way(), "packed_rows": Way(packs=True), "packed_rows_kept_states": Way(packs=True, keeps=True)}


def read_recipe(llm: Path, encoder: Path, selection: Path) -> RunConfig:
    """The quickstart's recipe with these models."""
    paths = {"model.llm": str(llm), "model.encoder": str(encoder), "unfreeze.selection": str(selection)}
    return read_run_config(RECIPE, overrides=paths)


def assemble_way(recipe: RunConfig, way: Way) -> Assembly:
    """The recipe's models in bfloat16, with what a run would choose beside it."""
    chosen = Arithmetic.of("bfloat16", measure_rates(torch.device("cpu")), encoder_dtype=recipe.model.encoder_dtype)
    return assemble(recipe, replace(chosen, packs=way.packs))


def run_ours(
    assembly: Assembly, clips: list[Recording], scratch: Path, way: Way, *, aligns: Sequence[bool] = (False,)
) -> Iterator[Step]:
    """Pack, then train: the warm-up's clips in a first step, the others as the schedule buckets them; once for each of `aligns`,
    which says if the adaptor is aligned alone."""
    for name, part in (("warm", clips[:STEP_SIZE]), ("measured", clips[STEP_SIZE:])):
        pack(part, scratch / name, shard_size=len(part), num_processes=1)
    cluster = start_training_cluster()
    engine = TrainingEngine(
        assembly.model,
        cluster=cluster,
        deepspeed_config=assembly.arithmetic.resolve(json.loads(PRESET.read_text())),
        optimizer=OPTIMIZER,
        micro_batches_per_rank=ACCUMULATE,
    )
    cache = FeatureCacheOptions(str(scratch / "states"), "benchmark", limit_bytes=1 << 40) if way.keeps else None
    encoder = ClipEncoder(assembly.encoder, engine.device, cache=FeatureCache(cache) if cache else None)
    plan = {"warm": 1, "measured": (len(clips) - STEP_SIZE) // STEP_SIZE}

    def open_steps(name: str) -> Iterator[tuple[SpeechBatch, ...]]:
        stream = SpeechStream(
            [SpeechDataset(str(scratch / name / "*.tar"))],
            tokenizer=assembly.tokenizer,
            num_mels=assembly.encoder.dims.num_mels,
            budget=BatchBudget(MICRO_BATCH, MAX_SECONDS, ACCUMULATE),
            max_seconds=assembly.encoder.dims.max_seconds,
            seed=0,
            rank=0,
            world_size=1,
            options=StreamOptions(feature_cache=cache, packs=way.packs),
        )
        with closing(stream.steps(0)) as steps:
            for _ in range(plan[name]):
                yield next(steps).batches

    if way.keeps:
        for batch in itertools.chain.from_iterable(open_steps("measured")):
            encoder.encode(batch)
    for aligns_alone, name in itertools.product(aligns, plan):
        for batches in open_steps(name):
            yield train_step(engine, assembly, encoder, batches, aligns_alone=aligns_alone)
    engine.close()


def train_step(
    engine: TrainingEngine, assembly: Assembly, encoder: ClipEncoder, data: Sequence[SpeechBatch], *, aligns_alone: bool
) -> Step:
    num_tokens = sum(batch.num_target_tokens for batch in data)
    batches = [MicroBatch(*encoder.encode(batch), label_ids_BL=batch.label_ids) for batch in data]
    result = engine.step(
        batches,
        prefix_ids=assembly.prompt.prefix_ids,
        suffix_ids=assembly.prompt.suffix_ids,
        num_target_tokens=num_tokens,
        seeds=[0] * len(batches),
        alignment_only=aligns_alone,
    )
    return Step(result.loss_sum_nats, num_tokens)
