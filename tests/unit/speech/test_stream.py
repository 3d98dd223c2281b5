"""Shards as a rank's stream of batches."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest

from kappaspeech.config.training_config import BatchConfig
from kappaspeech.errors import DataError
from kappaspeech.labels import IGNORED_LABEL
from kappaspeech.model.llm import load_tokenizer
from kappaspeech.speech.batches import collate, empty_batch, label_ids
from kappaspeech.speech.corpus import SpeechDataset
from kappaspeech.speech.feature_cache import CachedClip, FeatureCache, FeatureCacheOptions
from kappaspeech.speech.prompt import make_prompt
from kappaspeech.speech.schedule import BatchBudget
from kappaspeech.speech.shards import read_index
from kappaspeech.speech.source import ReadOptions
from kappaspeech.speech.stream import SpeechStream, StreamOptions, make_budget
from kappaspeech.speech.table import SampleTable, write_merged
from tests.web import FaultyServer

# A shard whose samples' heads have changed isn't opened at all.
KEPT_BYTES = 512
BUDGET = BatchBudget(max_samples=3, max_seconds=20.0, micro_batches_per_step=4)


@pytest.fixture(scope="module")
def tokenizer(home):
    return load_tokenizer(str(home / "llm"))


def open_stream(folder, tokenizer, *, rank: int = 0, world_size: int = 1, shards="*.tar", **changes) -> SpeechStream:
    options = {"budget": BUDGET, "max_seconds": 20.0, "seed": 1, **changes}
    datasets = [SpeechDataset(f"{folder}/{shards}")]
    return SpeechStream(datasets, tokenizer=tokenizer, num_mels=80, rank=rank, world_size=world_size, **options)


def take(stream: SpeechStream, count: int, first: int = 0):
    steps = stream.steps(first)
    try:
        return list(itertools.islice(steps, count))
    finally:
        steps.close()


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_ranks_share_out_what_one_rank_would_take(home, tokenizer, world_size):
    whole = take(open_stream(home / "shards/train", tokenizer), 3)
    shares = [take(open_stream(home / "shards/train", tokenizer, rank=r, world_size=world_size), 3) for r in range(world_size)]
    for step, alone in enumerate(whole):
        counts = {len(share[step].batches) for share in shares}
        assert counts == {-(-BUDGET.micro_batches_per_step // world_size)}
        batches = [batch for share in shares for batch in share[step].batches if batch.keys]
        assert sorted(batch.keys for batch in batches) == sorted(batch.keys for batch in alone.batches if batch.keys)
        by_keys = {batch.keys: batch for batch in batches}
        for batch in alone.batches:
            if batch.keys:
                np.testing.assert_array_equal(batch.audio_input, by_keys[batch.keys].audio_input)
                np.testing.assert_array_equal(batch.label_ids, by_keys[batch.keys].label_ids)


@pytest.mark.parametrize("world_size", [3, 8])
def test_a_step_that_is_dealt_out_holds_the_same_clips_on_any_number_of_ranks(home, tokenizer, world_size):
    options = StreamOptions(even_shares=True)
    whole = take(open_stream(home / "shards/train", tokenizer, options=options), 3)
    shares = [
        take(open_stream(home / "shards/train", tokenizer, options=options, rank=r, world_size=world_size), 3)
        for r in range(world_size)
    ]
    plain = take(open_stream(home / "shards/train", tokenizer), 3)
    for step, alone in enumerate(whole):
        assert sorted(key for share in shares for key in share[step].keys) == sorted(alone.keys) == sorted(plain[step].keys)
        assert len({len(share[step].batches) for share in shares}) == 1
        # four micro-batches of three clips would leave half of eight ranks without any
        assert all(share[step].keys for share in shares)


def test_what_is_packed_is_told_as_free_of_padding(home, tokenizer):
    padded, packed = (
        take(open_stream(home / "shards/train", tokenizer, options=StreamOptions(packs=packs)), 3) for packs in (False, True)
    )
    assert all(data.llm_padding > 0 for data in padded)
    assert all(data.llm_padding == 0 for data in packed)
    assert [data.padding for data in packed] == [data.padding for data in padded]


def test_a_limit_of_tokens_cuts_smaller_micro_batches_and_is_part_of_the_fingerprint(home, tokenizer):
    config = BatchConfig(max_samples=3, max_seconds=20.0, micro_batches_per_step=4, max_tokens=55)
    budget = make_budget(config, prompt_tokens=12, seconds_per_position=0.08)
    stream, before = (open_stream(home / "shards/train", tokenizer, budget=item) for item in (budget, BUDGET))
    assert stream.fingerprint != before.fingerprint
    batches, others = ([batch for data in take(item, 4) for batch in data.batches] for item in (stream, before))
    assert max(len(batch.keys) for batch in batches) == 2 < max(len(batch.keys) for batch in others)


def test_the_stream_resumes_in_the_middle(home, tokenizer):
    whole = take(open_stream(home / "shards/train", tokenizer), 6)
    rest = take(open_stream(home / "shards/train", tokenizer), 2, first=4)
    assert [data.keys for data in rest] == [data.keys for data in whole[4:]]
    assert [data.global_step for data in rest] == [4, 5]


def test_the_fingerprint_knows_data_and_options_but_not_where_they_lie_or_who_reads(home, tokenizer, tmp_path):
    train = home / "shards/train"
    ours = open_stream(train, tokenizer).fingerprint
    moved = shutil.copytree(train, tmp_path / "moved")
    assert open_stream(moved, tokenizer, rank=1, world_size=2).fingerprint == ours
    assert open_stream(train, tokenizer, seed=2).fingerprint != ours
    assert open_stream(train, tokenizer, budget=BatchBudget(2, 20.0, 4)).fingerprint != ours
    next(moved.glob("de-*.tar")).unlink()
    assert open_stream(moved, tokenizer).fingerprint != ours


def test_damaged_samples_are_masked_and_named_and_their_neighbours_untouched(home, tokenizer, tmp_path):
    damaged = shutil.copytree(home / "shards/train", tmp_path / "damaged")
    shard = sorted(damaged.glob("en-*.tar"))[0]
    clean = {data.global_step: data for data in take(open_stream(home / "shards/train", tokenizer), 2)}
    from kappaspeech.speech.shards import read_index

    victim = read_index(str(shard)).samples[1]
    with shard.open("r+b") as file:
        file.seek(victim.audio_offset + KEPT_BYTES)
        file.write(b"\0" * (victim.audio_bytes - KEPT_BYTES))
    hurt = take(open_stream(damaged, tokenizer), 2)
    (bad,) = [item for data in hurt for item in data.bad_samples]
    assert (bad.key, bad.cause, bad.shard) == (victim.key, "decode", str(shard))
    for data in hurt:
        assert data.keys == clean[data.global_step].keys
        for batch, other in zip(data.batches, clean[data.global_step].batches, strict=True):
            for row, key in enumerate(batch.keys):
                is_bad = key == victim.key
                assert float(batch.weights[row]) == (0.0 if is_bad else 1.0)
                labels = batch.label_ids[row][batch.label_ids[row] != IGNORED_LABEL]
                expected = other.label_ids[row][other.label_ids[row] != IGNORED_LABEL]
                assert labels.tolist() == ([] if is_bad else expected.tolist())


def test_a_clip_over_the_limit_is_masked_as_too_long(home, tokenizer):
    steps = take(open_stream(home / "shards/train", tokenizer, max_seconds=0.7), 6)
    masked = {item.key: item.cause for data in steps for item in data.bad_samples}
    assert set(masked.values()) == {"too long"}
    seen = {key: float(w) for data in steps for batch in data.batches for key, w in zip(batch.keys, batch.weights, strict=True)}
    assert {key for key, weight in seen.items() if weight == 0} == set(masked)
    assert len(masked) < len(seen)


def test_an_error_while_preparing_reaches_the_consumer(home, tokenizer, tmp_path):
    gone = shutil.copytree(home / "shards/train", tmp_path / "gone")
    stream = open_stream(gone, tokenizer)
    for shard in gone.glob("*.tar"):
        shard.unlink()
    with pytest.raises(DataError, match="can't be read: No such file"):
        take(stream, 1)


def test_a_stream_over_http_holds_the_disks_batches_in_fewer_requests_than_samples(home, tokenizer):
    shards = "{" + ",".join(sorted(path.name for path in (home / "shards/train").glob("*.tar"))) + "}"
    local = take(open_stream(home / "shards/train", tokenizer), 6)
    with FaultyServer(home / "shards/train") as server:
        # five attempts that each fail somewhere
        server.faults = ["500", "reset", "short", "503", "short"]
        read = ReadOptions(attempts=4, stall_seconds=10.0)
        stream = open_stream(server.url, tokenizer, shards=shards, options=StreamOptions(read=read))
        server.ranges.clear()
        remote = take(stream, 6)
        asked = len(server.ranges)
    for one, other in zip(local, remote, strict=True):
        for batch, its in zip(one.batches, other.batches, strict=True):
            assert batch.keys == its.keys
            np.testing.assert_array_equal(batch.audio_input, its.audio_input)
            np.testing.assert_array_equal(batch.label_ids, its.label_ids)
    assert asked < sum(len(data.keys) for data in local)


def test_neighbours_come_together_whatever_steps_they_are_in_as_far_as_memory_allows(home, tokenizer):
    shards = sorted((home / "shards/train").glob("*.tar"))
    names = "{" + ",".join(path.name for path in shards) + "}"
    with FaultyServer(home / "shards/train") as server:
        options = StreamOptions(read=ReadOptions(attempts=4, stall_seconds=10.0), prefetch_steps=1)
        stream = open_stream(server.url, tokenizer, shards=names, options=options, budget=BatchBudget(1, 20.0, 1))
        server.ranges.clear()
        count = 5 * stream.num_samples
        assert sum(len(data.keys) for data in take(stream, count)) == count
    assert 2 * len(server.ranges) < count


@pytest.mark.parametrize("prefetch_steps", [1, 3])
def test_steps_before_one_that_can_not_be_had_are_given_however_far_ahead_it_is_met(home, tokenizer, tmp_path, prefetch_steps):
    folder = shutil.copytree(home / "shards/train", tmp_path / "shards")
    indices = [read_index(str(path)) for path in sorted(folder.glob("*.tar"))]
    # a merged index's shards are looked at when they are first needed
    write_merged(SampleTable.of(indices), folder / "all.index")
    options = {"budget": BatchBudget(1, 20.0, 1), "options": StreamOptions(prefetch_steps=prefetch_steps)}
    whole = [data.keys[0] for data in take(open_stream(folder, tokenizer, shards="all.index", **options), 40)]
    first_need = {min(whole.index(s.key) for s in index.samples if s.key in whole): index.where for index in indices}
    num_before = max(first_need)
    assert num_before > 1
    stream = open_stream(folder, tokenizer, shards="all.index", **options)
    Path(first_need[num_before]).unlink()
    given: list[str] = []
    with pytest.raises(DataError, match=Path(first_need[num_before]).name):
        given.extend(data.keys[0] for data in stream.steps(0))
    assert given == whole[:num_before]


def test_a_language_without_samples_is_refused(home, tokenizer):
    with pytest.raises(DataError, match="'fr'"):
        SpeechStream(
            [SpeechDataset(str(home / "shards/train/*.tar"), language="fr")],
            tokenizer=tokenizer,
            num_mels=80,
            budget=BUDGET,
            max_seconds=20.0,
            seed=1,
            rank=0,
            world_size=1,
        )


def test_eos_is_a_target_and_padding_is_not(tokenizer):
    ids = label_ids(tokenizer, "turn the lamp")
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[:-1]) == "turn the lamp"
    from kappaspeech.speech.batches import Features

    mel = np.zeros((80, 4), dtype=np.float32)
    batch = collate([Features("a", "en", mel, ids), Features("b", "en", mel, ids[-2:]), None], num_mels=80, keys=("a", "b", "c"))
    assert batch.num_target_tokens == len(ids) + 2
    assert batch.weights.tolist() == [1, 1, 0]
    assert empty_batch(80).num_target_tokens == 0


def test_the_prompt_is_the_chat_template_around_the_audio(tokenizer):
    prompt = make_prompt(tokenizer, "Listen: {audio} Now write.")
    assert tokenizer.decode(prompt.prefix_ids) == "[system][user]Listen: "
    assert tokenizer.decode(prompt.suffix_ids) == " Now write.[a]"


@pytest.mark.parametrize("world_size", [1, 3])
def test_each_clip_is_asked_what_its_data_set_asks_also_from_the_cache(home, tokenizer, tmp_path, world_size):
    train = str(home / "shards/train/*.tar")
    datasets = [
        SpeechDataset(train, "en", instruction="Translate: {audio}"),
        SpeechDataset(train, "de"),
        SpeechDataset(train, "de", weight=0.5, instruction="Answer: {audio}"),
    ]
    options = {"budget": BUDGET, "max_seconds": 20.0, "seed": 1, "tokenizer": tokenizer, "num_mels": 80}
    cache_options = FeatureCacheOptions(str(tmp_path), "encoder", 1 << 20)
    cache = FeatureCache(cache_options)

    def ask(rank: int) -> list[tuple[str, str | None, bool]]:
        streaming = StreamOptions(feature_cache=cache_options)
        stream = SpeechStream(datasets, rank=rank, world_size=world_size, options=streaming, **options)
        batches = [batch for data in take(stream, 4) for batch in data.batches]
        for target in (target for batch in batches for target in batch.to_cache if target is not None):
            cache.keep(target.name, CachedClip(np.ones((4, 2), np.float32), 8, target.transcript))
        return [
            (key, instruction, states is not None)
            for batch in batches
            for key, instruction, states in zip(batch.keys, batch.instructions, batch.states, strict=False)
        ]

    fresh, cached = ([row for rank in range(world_size) for row in ask(rank)] for _ in range(2))
    assert {(key[:2], instruction) for key, instruction, _ in fresh} == {
        ("en", "Translate: {audio}"),
        ("de", None),
        ("de", "Answer: {audio}"),
    }
    assert [row[:2] for row in cached] == [row[:2] for row in fresh]
    assert all(was_cached for *_, was_cached in cached)
    whole = SpeechStream(datasets, rank=0, world_size=1, **options)
    alone = [
        row for data in take(whole, 4) for batch in data.batches for row in zip(batch.keys, batch.instructions, strict=False)
    ]
    assert sorted(map(str, alone)) == sorted(str(row[:2]) for row in fresh)


def test_another_instruction_is_another_fingerprint_and_none_is_what_it_was(home, tokenizer):
    train = str(home / "shards/train/*.tar")

    def fingerprint(instruction: str | None) -> str:
        datasets = [SpeechDataset(train, instruction=instruction)]
        options = {"budget": BUDGET, "max_seconds": 20.0, "seed": 1, "rank": 0, "world_size": 1}
        return SpeechStream(datasets, tokenizer=tokenizer, num_mels=80, **options).fingerprint

    assert fingerprint(None) == open_stream(home / "shards/train", tokenizer).fingerprint
    assert len({fingerprint(text) for text in (None, "Translate: {audio}", "Answer: {audio}")}) == 3
