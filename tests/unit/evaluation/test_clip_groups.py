"""Groups of clips: a function of the list, shared out over any number of ranks, and decoded as each clip alone would be."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import soundfile as sf

from kappaspeech.errors import DataError
from kappaspeech.evaluation.clip_groups import in_rounds, make_groups, transcribe_clips, without_first
from kappaspeech.evaluation.clips import Clip
from kappaspeech.evaluation.transcripts import Transcript
from kappaspeech.speech.samples import SAMPLE_RATE_HZ, cut_at_pauses, decode
from tests.rank_threads import RankThreads, together
from tests.unit.evaluation.test_decoding import build

BATCH_SIZE = 3


pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.fixture(scope="module")
def transcriber(home):
    return build(home, scale=3)


def noise(name: str, seconds: float) -> Clip:
    waveform = np.random.default_rng(len(name)).normal(0, 0.1, int(seconds * SAMPLE_RATE_HZ)).astype(np.float32)
    return Clip(name, waveform, seconds, "en")


CLIPS = [
    noise("a", 0.5),
    Clip("broken", "it is torn"),
    noise("bcd", 2.9),
    noise("ef", 1.1),
    noise("ghij", 0.7),
    noise("klmno", 1.6),
]


def read(clip: Clip) -> np.ndarray:
    if isinstance(clip.source, str):
        raise DataError(clip.source)
    return clip.source


def test_groups_hold_every_clip_once_and_in_order():
    rng = random.Random(0)
    for _ in range(50):
        seconds = [rng.choice([0.0, 3.0, 900.0, 0.2]) for _ in range(rng.randrange(200))]
        groups = make_groups(seconds, batch_size=rng.randrange(1, 20))
        assert [index for group in groups for index in group] == list(range(len(seconds)))
        assert all(groups)


def test_groups_are_bounded_in_clips_and_seconds_and_a_long_clip_is_one_of_its_own():
    assert list(map(len, make_groups([1.0] * 40, batch_size=2))) == [16, 16, 8]
    assert list(map(len, make_groups([80.0] * 5, batch_size=2))) == [2, 2, 1]
    assert list(map(len, make_groups([10.0, 5000.0, 10.0], batch_size=2))) == [1, 1, 1]


def test_a_job_that_goes_on_has_the_groups_of_one_that_was_not_cut():
    groups = make_groups([1.0] * 40, batch_size=2)
    assert without_first(groups, 0) == groups
    assert without_first(groups, 16) == groups[1:]
    assert without_first(groups, 20) == [range(20, 32), range(32, 40)]
    assert without_first(groups, 40) == []


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_rounds_bring_the_transcripts_in_order_to_every_rank(world_size):
    groups = [range(0, 2), range(2, 3), range(3, 7), range(7, 8)]
    with RankThreads() as threads:
        clusters = threads.connect(world_size)
        done: dict[int, int] = {}

        def work(cluster):
            def transcribe(group):
                done[group.start] = cluster.rank
                return [Transcript(str(index), ()) for index in group]

            return [item.recording for found in in_rounds(groups, cluster, transcribe) for item in found]

        assert together(clusters, work) == [list(map(str, range(8)))] * world_size
    assert [done[group.start] for group in groups] == [number % world_size for number in range(4)]


def test_texts_are_those_of_each_clip_alone_and_a_broken_one_stops_nothing(transcriber):
    """Equal to the letter in float32; in bfloat16 a batch may round another way."""
    decoder = transcriber.__class__(**{**transcriber.__dict__, "batch_size": BATCH_SIZE, "keeps_confidence": True})
    longest_seconds = 1.25
    advanced: list[float] = []
    longest: list[float] = []
    found = transcribe_clips(
        CLIPS, decoder, read=read, longest_seconds=longest_seconds, on_longest=longest.append, advance=advanced.append
    )
    assert [item.recording for item in found] == [clip.name for clip in CLIPS]
    assert found[1].error == "it is torn"
    assert not found[1].segments
    texts = set()
    for clip, item in zip(CLIPS, found, strict=True):
        if item.error is not None:
            continue
        pieces = cut_at_pauses(read(clip), longest_seconds=longest_seconds)
        alone = [decoder.decode([sample])[0] for sample in samples_of(pieces)]
        assert [part.text for part in item.segments] == [decoded.text for decoded in alone]
        assert [part.ending for part in item.segments] == [decoded.ending for decoded in alone]
        assert [part.confidence for part in item.segments] == pytest.approx([d.confidence for d in alone], rel=1e-4)
        assert [part.num_tokens for part in item.segments] == [decoded.num_tokens for decoded in alone]
        ends = np.cumsum([len(piece) for piece in pieces]) / SAMPLE_RATE_HZ
        assert [part.end_seconds for part in item.segments] == pytest.approx(ends)
        assert [part.start_seconds for part in item.segments] == pytest.approx([0, *ends[:-1]])
        assert item.seconds == pytest.approx(clip.seconds)
        texts.add(item.text)
    assert len(texts) > 2, "texts that are all alike would prove nothing"
    assert sum(advanced) == pytest.approx(sum(clip.seconds for clip in CLIPS))
    assert longest == pytest.approx([max(p.end_seconds - p.start_seconds for item in found for p in item.segments)])


def zeros() -> np.ndarray:
    return np.zeros(4 * SAMPLE_RATE_HZ, dtype=np.float32)


def through_opus() -> np.ndarray:
    """Silence as Opus gives it back, in which some samples are one step of 16 bits."""
    with io.BytesIO() as file:
        sf.write(file, np.concatenate([read(noise("abc", 1.0)), zeros(), zeros()]), SAMPLE_RATE_HZ, format="OGG", subtype="OPUS")
        heard = decode(file.getvalue())[2 * SAMPLE_RATE_HZ :][: 4 * SAMPLE_RATE_HZ]
    assert heard.any()
    return heard


@pytest.mark.parametrize("silence", [zeros, through_opus])
def test_digital_silence_within_a_clip_has_no_words(transcriber, silence):
    sound, gap = read(noise("abc", 1.2)), silence()
    clip = Clip("gap", np.concatenate([sound, gap, sound]), 6.4, "en")
    (found,) = transcribe_clips([clip], transcriber, read=read, longest_seconds=1.5)
    heard = {piece for part in found.segments for piece in (part.start_seconds, part.end_seconds)}
    assert found.seconds == pytest.approx(6.4)
    assert all(part.start_seconds < 1.2 or part.end_seconds > 5.2 for part in found.segments)
    assert {0.0, 6.4} <= heard


def samples_of(pieces):
    from kappaspeech.speech.samples import AudioSample

    return [AudioSample("", piece, "", "en") for piece in pieces]


def test_waveforms_that_wait_are_bounded_and_the_texts_do_not_change(transcriber, monkeypatch):
    expected = transcribe_clips(CLIPS, transcriber, read=read, longest_seconds=24.0)
    monkeypatch.setattr("kappaspeech.evaluation.clip_groups._MOST_WAITING_SECONDS", 1.0)
    decodes: list[float] = []
    assert transcribe_clips(CLIPS, transcriber, read=read, longest_seconds=24.0, on_longest=decodes.append) == expected
    assert len(decodes) > 2
