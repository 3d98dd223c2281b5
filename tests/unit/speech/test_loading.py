"""Samples on their way into a batch, in this process and in workers."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from kappaspeech.errors import DataError
from kappaspeech.labels import IGNORED_LABEL
from kappaspeech.model.llm import load_tokenizer
from kappaspeech.speech.augment import Augmentation, change_speed, generator, mask_spectrogram
from kappaspeech.speech.corpus import Corpus, SpeechDataset
from kappaspeech.speech.loader_pool import LoaderPool
from kappaspeech.speech.loading import LoadOptions
from kappaspeech.speech.normalisers import normalise_text
from kappaspeech.speech.sample_reader import SampleRef
from kappaspeech.speech.samples import log_mel
from kappaspeech.speech.schedule import BatchBudget
from kappaspeech.speech.source import ReadOptions
from kappaspeech.speech.stream import SpeechStream, StreamOptions

OPTIONS = LoadOptions(num_mels=80, max_seconds=20.0)


@pytest.fixture(scope="module")
def refs(home) -> list[SampleRef]:
    corpus = Corpus(SpeechDataset(str(home / "shards/train/*.tar")))
    return [corpus.ref(index, 1, index) for index in range(corpus.num_samples)]


def stream(home: Path, *, rank: int = 0, world_size: int = 1, datasets=None, max_seconds=20.0, **options) -> SpeechStream:
    return SpeechStream(
        datasets or [SpeechDataset(str(home / "shards/train/*.tar"))],
        tokenizer=load_tokenizer(str(home / "llm")),
        num_mels=80,
        budget=BatchBudget(3, 20.0, 4),
        max_seconds=max_seconds,
        seed=1,
        rank=rank,
        world_size=world_size,
        options=StreamOptions(**options),
    )


def take(source: SpeechStream, count: int):
    steps = source.steps(0)
    try:
        return list(itertools.islice(steps, count))
    finally:
        steps.close()


def workers() -> set[psutil.Process]:
    """Processes that this one has spawned for a pool."""
    found = set()
    for child in psutil.Process().children():
        # one that has ended and that nobody has asked after yet has no command line
        with contextlib.suppress(psutil.Error):
            if "spawn_main" in " ".join(child.cmdline()):
                found.add(child)
    return found


@pytest.mark.slow
def test_workers_load_what_this_process_loads_also_when_one_is_killed(home):
    augmentation = Augmentation(speed_factors=(0.9, 1.0, 1.1), freq_masks=1, time_masks=1)
    alone = take(stream(home, augmentation=augmentation), 8)
    others = workers()
    steps = stream(home, augmentation=augmentation, num_workers=2).steps(0)
    shared = [next(steps)]
    own = workers() - others
    assert len(own) == 2
    os.kill(own.pop().pid, signal.SIGKILL)
    shared += list(itertools.islice(steps, 7))
    steps.close()
    for one, other in zip(alone, shared, strict=True):
        for batch, its in zip(one.batches, other.batches, strict=True):
            assert batch.keys == its.keys
            torch.testing.assert_close(batch.audio_input, its.audio_input, rtol=1e-5, atol=1e-5)
            assert torch.equal(batch.label_ids, its.label_ids)


@pytest.mark.slow
def test_workers_that_keep_dying_are_an_error(refs, monkeypatch):
    monkeypatch.setattr("kappaspeech.speech.loader_pool._MAX_RESTARTS", 0)
    others = workers()
    pool = LoaderPool(OPTIONS, ReadOptions(), num_workers=1)
    pool.take(pool.submit(refs[:1]))
    (worker,) = workers() - others
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(DataError, match="have died 1 times"):
        load_often(pool, refs)
    pool.close()


def load_often(pool: LoaderPool, refs: list[SampleRef]) -> None:
    for _ in range(50):
        pool.take(pool.submit(refs[:4]))


def load(refs: list[SampleRef], options: LoadOptions):
    pool = LoaderPool(options, ReadOptions(), num_workers=0)
    return pool.take(pool.submit(refs))


def test_features_are_whispers_own_for_80_and_128_mels(refs):
    from whisper.audio import log_mel_spectrogram

    waveform = np.random.default_rng(0).normal(0, 0.1, 16_000 * 3 + 17).astype(np.float32)
    for num_mels in (80, 128):
        padded = np.pad(waveform, (0, -len(waveform) % 320))
        np.testing.assert_allclose(log_mel(waveform, num_mels), log_mel_spectrogram(padded, num_mels).numpy(), atol=1e-5)
        assert load(refs[:1], LoadOptions(num_mels, 20.0))[0].audio_input.shape[0] == num_mels


def test_an_over_long_sample_is_masked_or_its_audio_is_cut(refs):
    seconds = refs[0].entry.seconds
    masked, cut = (load(refs[:1], LoadOptions(80, seconds / 2, choice))[0] for choice in ("mask", "cut"))
    assert masked.cause == "too long"
    assert cut.audio_input.shape[1] == pytest.approx(seconds / 2 * 100, abs=2)


def test_augmentation_is_the_same_for_a_sample_at_a_place_and_another_elsewhere(refs):
    options = LoadOptions(80, 20.0, augmentation=Augmentation(speed_factors=(0.9, 1.1), freq_masks=2, time_masks=2))
    plain = load(refs[:6], OPTIONS)
    first, again = load(refs[:6], options), load(refs[:6], options)
    elsewhere = load([SampleRef(ref.where, ref.entry, counter=(2, *ref.counter)) for ref in refs[:6]], options)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.audio_input, other.audio_input)
    assert any(one.audio_input.shape != other.audio_input.shape for one, other in zip(first, elsewhere, strict=True))
    factors = {round(p.audio_input.shape[1] / o.audio_input.shape[1], 1) for p, o in zip(plain, [*first, *first], strict=False)}
    assert factors == {0.9, 1.1}


def test_no_speed_makes_a_clip_so_long_that_its_end_is_cut_off(refs):
    longest = refs[0].entry.seconds * 1.1
    ((plain,), (kept,), (faster,)) = (
        load(refs[:1], LoadOptions(80, longest, augmentation=Augmentation(speed_factors=factors)))
        for factors in ((), (0.8,), (0.5, 0.8, 1.25))
    )
    np.testing.assert_array_equal(kept.audio_input, plain.audio_input)
    assert faster.audio_input.shape[1] == pytest.approx(plain.audio_input.shape[1] / 1.25, abs=2)


def test_masks_blank_whole_bands_and_stretches_within_their_limits():
    features = np.random.default_rng(0).normal(size=(80, 400)).astype(np.float32)
    options = Augmentation(freq_masks=1, freq_width=10, time_masks=1, time_width=1000, max_time_fraction=0.1)
    for seed in range(30):
        masked = mask_spectrogram(features, options, generator(seed))
        changed = masked != features
        bands, stretches = changed.all(axis=1), changed.all(axis=0)
        assert bands.sum() <= 10
        assert stretches.sum() <= 40
        np.testing.assert_array_equal(changed, bands[:, None] | stretches[None, :])
    assert mask_spectrogram(features, Augmentation(), generator(0)) is features


def test_speed_moves_pitch_and_length():
    tone = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000).astype(np.float32)
    faster = change_speed(tone, [1.25], generator(0))
    assert len(faster) == pytest.approx(12_800, abs=2)
    assert np.abs(np.fft.rfft(faster)).argmax() * 16_000 / len(faster) == pytest.approx(550, abs=3)


def test_the_schedule_leaves_room_for_what_speed_makes_longer(home):
    slow = stream(home, augmentation=Augmentation(speed_factors=(0.5,)))
    shapes = [batch.audio_input.shape for data in take(slow, 6) for batch in data.batches]
    # a clip alone may be longer than the budget
    shared = [(rows, frames) for rows, _, frames in shapes if rows > 1]
    assert shared
    assert [(rows, frames) for rows, frames in shared if rows * frames > 20.0 * 100 + 2 * 3] == []


def test_text_is_normalised_by_language_where_asked_for():
    assert normalise_text("Mr. Smith's colour, 1 dog!", "en", "whisper") == "mister smith is color one dog"
    assert normalise_text("Größe, Straße!", "de", "whisper") == "größe straße"
    assert normalise_text("Größe, Straße!", "de", "none") == "Größe, Straße!"


def test_a_step_says_how_much_of_each_data_set_it_holds(home):
    sets = [SpeechDataset(str(home / "shards/train/*.tar"), language, name=f"set {language}") for language in ("en", "de")]
    steps = take(stream(home, datasets=sets), 3)
    for data in steps:
        assert data.seconds_by_dataset == {f"set {language}": seconds for language, seconds in data.seconds_by_language.items()}
    assert len({name for data in steps for name in data.seconds_by_dataset}) == 2


def test_what_is_cut_off_a_clip_was_not_heard(home):
    for data in take(stream(home, max_seconds=0.3, over_long="cut"), 2):
        assert data.audio_seconds == pytest.approx(0.3 * len(data.keys))
        assert sum(data.seconds_by_dataset.values()) == pytest.approx(data.audio_seconds)


def test_a_language_that_a_set_lacks_is_told_with_those_that_it_has(home):
    with pytest.raises(DataError, match=r"no sample in language 'french'. Its languages are: 'de', 'en'\."):
        Corpus(SpeechDataset(str(home / "shards/train/*.tar"), "french"))


def test_a_step_says_what_it_cost_by_language_and_part(home):
    for data in take(stream(home), 3):
        entries = {key for batch in data.batches for key in batch.keys}
        assert set(data.seconds_by_language) == {key.split("/")[0] for key in entries}
        assert 0 <= data.padding < 1
        rows = [
            (int(batch.num_frames[row]) + 7) // 8 + int((batch.label_ids[row] != IGNORED_LABEL).sum())
            for batch in data.batches
            if batch.keys
            for row in range(len(batch.keys))
        ]
        widths = [
            len(batch.keys)
            * max(
                (int(batch.num_frames[row]) + 7) // 8 + int((batch.label_ids[row] != IGNORED_LABEL).sum())
                for row in range(len(batch.keys))
            )
            for batch in data.batches
            if batch.keys
        ]
        assert data.llm_padding == pytest.approx(1 - sum(rows) / sum(widths))
