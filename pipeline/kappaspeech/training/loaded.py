"""The inputs that a run reads before DeepSpeed takes hold of it: models, data, and the digests that identify them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from kappaspeech.artefacts import digest_json
from kappaspeech.config.run_config import RunConfig
from kappaspeech.errors import DataError
from kappaspeech.escaping import for_terminal
from kappaspeech.evaluation.evaluate import TestSet, read_test_set
from kappaspeech.model.encoder import SpeechEncoder
from kappaspeech.model.kept_directions import find_still
from kappaspeech.model.packed_rows import packed_otherwise
from kappaspeech.ranks.agreement import agree, agreement
from kappaspeech.ranks.cluster import Cluster
from kappaspeech.ranks.hosts import check_alike
from kappaspeech.runs.contents import RECORD_FILE
from kappaspeech.speech.corpus import Corpus, make_datasets, make_read_options
from kappaspeech.speech.feature_cache import FeatureCacheOptions, StateSize, explain_small
from kappaspeech.speech.hot_words import HotWords, Vocabulary, read_vocabulary
from kappaspeech.speech.overlap import find_overlap
from kappaspeech.speech.stream import SpeechStream, make_budget, make_stream_options
from kappaspeech.training.agreed import Agreed
from kappaspeech.training.assembly import Assembly, assemble, digest_trained
from kappaspeech.training.consolidating import read_consolidated
from kappaspeech.training.frozen_check import digest_frozen, digest_start
from kappaspeech.training.kept_adaptor import FINGERPRINT, find_kept_adaptor, refuse_other_adaptor
from kappaspeech.training.kept_prompt import digest_prompt_source, settle_prompt
from kappaspeech.training.replay import Replay, read_measured, read_replay
from kappaspeech.training.stopping import refuse_old_stop_file
from kappaspeech.training.surroundings import Surroundings

# at a start all ranks wait for this; `doctor` compares more
_MOST_COMPARED_TEXTS = 2_000


@dataclass(frozen=True)
class Loaded:
    """Models, whole and on the CPU; data; digests of every tensor that stays as it is, and of all that training starts from.

    `fingerprints` identify the inputs that a checkpoint must have been trained with; the counts are of parameters that train.
    `measured` are the pieces of text, by language, by which a forgetting budget is kept; `consolidated` those of `ewc`.
    """

    assembly: Assembly
    stream: SpeechStream
    test_set: TestSet | None
    replay: Replay | None
    measured: Mapping[str, Sequence[Sequence[int]]]
    consolidated: Sequence[Sequence[int]]
    cache: FeatureCacheOptions | None
    frozen: Mapping[str, str]
    initial: str
    fingerprints: Mapping[str, str]
    num_adaptor: int
    num_llm: int


def load(config: RunConfig, agreed: Agreed, around: Surroundings) -> Loaded:
    """Read all that `config` names. Raises on every rank if one can't, or if hosts have read other things. A collective."""
    cluster, folder = around.cluster, around.folder
    began = find_kept_adaptor(cluster=cluster, folder=folder)
    kept = began if began is not None and began.initial == config.model.adaptor.initial else None
    with agreement(cluster):
        refuse_old_stop_file(folder.path)
        assembly = assemble(config, agreed.arithmetic, kept_adaptor=None if kept is None else kept.origin)
        if began is not None:
            refuse_other_adaptor(began, config, assembly.first_adaptor)
        still = _find_still(config, assembly)
        encoder_digests = assembly.encoder.digests()
        cache = feature_cache_options(config, assembly, encoder_digests)
    # a budget of tokens counts the prompt's
    assembly = replace(assembly, prompt=settle_prompt(config, assembly.tokenizer, cluster=cluster, folder=folder))
    hot_words = _read_hot_words(config, cluster)
    with agreement(cluster):
        stream = _open_stream(config, assembly, cluster, cache, hot_words)
        test_set = read_test_set(config, rank=cluster.rank, world_size=cluster.world_size) if config.data.test else None
        replay, measured = read_replay(config, assembly.tokenizer), read_measured(config, assembly.tokenizer)
        consolidated = read_consolidated(config, assembly.tokenizer)
        # only the first start warns
        if around.is_writer and not (folder.path / RECORD_FILE).exists():
            if config.data.test:
                warn_of_overlap(config, stream)
            if cache is not None:
                warn_of_small_cache(cache, assembly.encoder, stream, max_seconds=config.batch.max_seconds)
    if around.is_writer and still:
        told = f"warning: unfreeze.osf keeps every direction of {len(still)} tensor(s), which don't train (first: {still[0]})"
        print(for_terminal(told), file=sys.stderr, flush=True)
    if around.is_writer and agreed.arithmetic.packs and not assembly.model.packs:
        told = f"packing auto: clips are padded, as {packed_otherwise(assembly.model.llm)}"
        print(for_terminal(told), file=sys.stderr, flush=True)
    check_alike(
        cluster,
        {
            **_inputs(config, assembly, encoder_digests, stream, replay),
            "the text of ewc": digest_json(consolidated),
            # ranks that measured other text would steer by other distances
            "the text of the budget": digest_json(measured),
            **(test_set.fingerprints if test_set else {}),
        },
        remedy="Copy it from one place to all hosts, or share it.",
    )
    frozen = digest_frozen(assembly, cluster)
    return Loaded(
        assembly,
        stream,
        test_set,
        replay,
        measured,
        consolidated,
        cache,
        frozen={**encoder_digests, **frozen},
        initial=kept.initial_weights_digest if kept else digest_start(assembly, encoder_digests),
        fingerprints={
            "base model": assembly.base_digest,
            "encoder": digest_json({**encoder_digests, "pad_to_30s": assembly.encoder.pad_to_30s}),
            "frozen tensors": digest_json(frozen),
            "selection": digest_trained(config.unfreeze, assembly.selection),
            "adaptor": digest_json(asdict(assembly.adaptor_shape)),
            FINGERPRINT: assembly.first_adaptor.digest if assembly.first_adaptor else "random",
            "prompt": digest_json(assembly.prompt.only(config.data.train).to_json()),
            "moving average": f"decay {config.training.ema_decay}",
            "data": stream.fingerprint,
            "replayed text": replay.fingerprint if replay else "none",
            "consolidation": digest_json({"pieces": consolidated, "weight": config.ewc.weight}) if config.ewc else "none",
            "CLASSP": digest_json(config.classp.model_dump()) if config.classp else "none",
        },
        num_adaptor=sum(p.numel() for p in assembly.model.adaptor.parameters()),
        num_llm=sum(p.numel() for p in assembly.model.llm.parameters() if p.requires_grad),
    )


def _find_still(config: RunConfig, assembly: Assembly) -> list[str]:
    """The selected tensors that OSF leaves nothing of to train."""
    osf, selection = config.unfreeze.osf, assembly.selection
    return [] if osf is None or selection is None else find_still(selection.shapes, share=osf.kept_share)


def _inputs(
    config: RunConfig, assembly: Assembly, encoder_digests: Mapping[str, str], stream: SpeechStream, replay: Replay | None
) -> dict[str, str]:
    return {
        "the base model": assembly.base_digest,
        "the encoder": digest_json(encoder_digests),
        "the selection": digest_json(assembly.selection.shapes if assembly.selection else {}),
        "the initial adaptor": assembly.first_adaptor.digest if assembly.first_adaptor else "random",
        "the tokenizer": digest_prompt_source(config, assembly.tokenizer),
        "the training data": stream.fingerprint,
        "the replayed text": replay.fingerprint if replay else "none",
    }


def warn_of_overlap(config: RunConfig, stream: SpeechStream) -> None:
    """Warn if test data is also trained on: word error rates then measure memory of the training data."""
    read = make_read_options(config.data.read)
    test = [Corpus(dataset, read) for dataset in make_datasets(config.data.test)]
    try:
        overlap = find_overlap(stream.corpora, test, read, most_texts=_MOST_COMPARED_TEXTS)
    except DataError as error:
        print(for_terminal(f"warning: training and test data can't be compared: {error}"), file=sys.stderr, flush=True)
        return
    if overlap.found:
        print(for_terminal(f"warning: training and test data share: {overlap.found}"), file=sys.stderr, flush=True)


def feature_cache_options(
    config: RunConfig, assembly: Assembly, encoder_digests: Mapping[str, str]
) -> FeatureCacheOptions | None:
    """The folder of cached states, if they are kept: a separate one for each encoder, and for each way of making its input."""
    data, encoder = config.data, assembly.encoder
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


def warn_of_small_cache(cache: FeatureCacheOptions, encoder: SpeechEncoder, stream: SpeechStream, *, max_seconds: float) -> None:
    """Say on stderr that not all states find room: an epoch is then not much faster than without a cache."""
    dims = encoder.dims
    size = StateSize(dims.seconds_per_state, dims.width * encoder.dtype.itemsize, min(max_seconds, dims.max_seconds))
    told = explain_small(cache.limit_bytes, size.count_bytes(corpus.lengths().seconds for corpus in stream.corpora))
    if told is not None:
        print(for_terminal(f"warning: {told}"), file=sys.stderr, flush=True)


def _read_hot_words(config: RunConfig, cluster: Cluster) -> HotWords | None:
    """The hot words of `data.hot_words`, their vocabulary as rank 0 reads it. A collective."""
    options = config.data.hot_words
    if options is None:
        return None
    read = make_read_options(config.data.read)

    def find() -> Vocabulary | None:
        if cluster.rank:
            return None
        return read_vocabulary(
            [Corpus(dataset, read) for dataset in make_datasets(config.data.train)], read, max_text_share=options.max_text_share
        )

    vocabulary = agree(cluster, find)[0]
    assert vocabulary is not None
    return HotWords(options, vocabulary)


def _open_stream(
    config: RunConfig, assembly: Assembly, cluster: Cluster, cache: FeatureCacheOptions | None, hot_words: HotWords | None
) -> SpeechStream:
    dims, stacking = assembly.encoder.dims, config.model.adaptor.stacking
    budget = make_budget(
        config.batch,
        prompt_tokens=assembly.prompt.most_tokens(config.data.train, hot=config.data.most_hot_tokens),
        seconds_per_position=dims.seconds_per_state * stacking,
    )
    options = replace(
        make_stream_options(config.data),
        feature_cache=cache,
        hot_words=hot_words,
        even_shares=config.batch.even_shares,
        packs=assembly.model.packs,
    )
    return SpeechStream(
        make_datasets(config.data.train),
        tokenizer=assembly.tokenizer,
        num_mels=dims.num_mels,
        budget=budget,
        max_seconds=min(config.batch.max_seconds, dims.max_seconds),
        seed=config.seed,
        rank=cluster.rank,
        world_size=cluster.world_size,
        options=options,
        frames_per_position=dims.frames_per_state * stacking,
    )
