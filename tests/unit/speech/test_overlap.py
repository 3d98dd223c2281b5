"""Test speech that is also trained on."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from kappaspeech.speech.corpus import Corpus, SpeechDataset
from kappaspeech.speech.overlap import find_overlap
from kappaspeech.speech.shard_indexing import index_shard
from kappaspeech.speech.shards import write_index
from tests.speech_files import details, make_tar


def noise(seed: int, kind: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(seed).normal(0, 0.1, 8_000), 16_000, format=kind.upper())
    return buffer.getvalue()


@pytest.fixture
def corpus(tmp_path):
    def make(name: str, samples: list[tuple[int, str]], *, kind: str = "flac") -> Corpus:
        members = []
        for number, (seed, text) in enumerate(samples):
            key = f"{name}-{number}"
            members += [(f"{key}.{kind}", noise(seed, kind)), (f"{key}.json", details(text=text, language="en", duration=0.5))]
        write_index(index_shard(str(make_tar(tmp_path / f"{name}.tar", members))))
        return Corpus(SpeechDataset(str(tmp_path / f"{name}.tar")))

    return make


def test_recordings_and_sentences_in_both_are_found(corpus):
    train = [corpus("a", [(1, "Turn the lamp on."), (2, "open the door")]), corpus("b", [(3, "a green garden")])]
    test = [corpus("c", [(4, "turn the LAMP on!"), (3, "another text"), (5, "nothing like it")])]
    overlap = find_overlap(train, test)
    assert (overlap.num_test, overlap.num_looked_at, overlap.num_train_looked_at) == (3, 3, 3)
    assert (overlap.num_sentences, overlap.sentences) == (1, ("turn the lamp on",))
    assert (overlap.num_recordings, overlap.recordings) == (1, ("c-1",))
    assert "1 of 3 test recordings are trained on (first: c-1)" in overlap.found
    assert "'turn the lamp on'" in overlap.found


def test_recordings_of_one_size_and_length_are_told_apart_by_all_their_bytes(corpus):
    train = [corpus("a", [(1, "one"), (2, "two")], kind="wav"), corpus("b", [(3, "three")], kind="wav")]
    test = [corpus("c", [(3, "four"), (4, "five"), (2, "six")], kind="wav")]
    overlap = find_overlap(train, test)
    assert (overlap.num_recordings, overlap.recordings) == (2, ("c-0", "c-2"))


def test_apart_they_share_nothing(corpus):
    overlap = find_overlap([corpus("a", [(1, "one")])], [corpus("b", [(2, "two")])])
    assert (overlap.num_sentences, overlap.num_recordings, overlap.found) == (0, 0, "")


def test_doctor_and_train_say_so(home, tmp_path, capsys):
    from kappaspeech.config.run_config import read_run_config
    from kappaspeech.diagnosis.configuration import check_configuration
    from kappaspeech.speech.corpus import make_datasets
    from kappaspeech.speech.schedule import BatchBudget
    from kappaspeech.speech.stream import SpeechStream
    from kappaspeech.training.loaded import warn_of_overlap
    from tests import tiny

    shards = str(home / "shards/train/en-*.tar")
    path = tiny.write_config(tmp_path / "c.yaml", home, tmp_path / "run", data__test=[{"shards": shards}])
    config = read_run_config(path)
    found = [item for item in check_configuration(config, world_size=1, environment={}) if "trained on" in item.found]
    assert [item.status for item in found] == ["warning"]
    assert "12 of 12 test recordings" in found[0].found
    assert "--split" in found[0].remedy
    stream = SpeechStream(
        make_datasets(config.data.train),
        tokenizer=None,
        num_mels=80,
        budget=BatchBudget(3, 20.0, 1),
        max_seconds=20.0,
        seed=1,
        rank=0,
        world_size=1,
    )
    warn_of_overlap(config, stream)
    assert "warning: training and test data share: 12 of 12 test recordings" in capsys.readouterr().err
