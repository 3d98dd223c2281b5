"""One sample that can't be used costs itself and no more, whatever is wrong with it."""

from __future__ import annotations

import io
import itertools
import json
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kappaspeech.errors import DataError
from kappaspeech.labels import IGNORED_LABEL
from kappaspeech.model.llm import load_tokenizer
from kappaspeech.speech.batches import label_ids
from kappaspeech.speech.corpus import SpeechDataset
from kappaspeech.speech.samples import BadSampleError, decode
from kappaspeech.speech.schedule import BatchBudget
from kappaspeech.speech.shard_indexing import index_shard
from kappaspeech.speech.shards import INDEX_SUFFIX, parse_transcript, read_index, write_index
from kappaspeech.speech.stream import SpeechStream
from kappaspeech.speech.table import SampleTable, write_merged
from tests.patience import patience
from tests.speech_files import clip, details, make_tar

GOOD = [("good.flac", clip(1.0)), ("good.json", details(text="turn the lamp", language="en", duration=1.0))]


@pytest.fixture(scope="module")
def tokenizer(home):
    return load_tokenizer(str(home / "llm"))


def flac_of_zeros(seconds: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(16_000 * seconds, dtype=np.int16), 16_000, format="FLAC")
    return buffer.getvalue()


def flac_that_claims(num_samples: int) -> bytes:
    content = bytearray(clip(1.0))
    # the number of samples has 36 bits of STREAMINFO
    content[21] = content[21] & 0xF0 | num_samples >> 32
    content[22:26] = (num_samples & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(content)


def first_step(shards: str, tokenizer):
    stream = SpeechStream(
        [SpeechDataset(shards)],
        tokenizer=tokenizer,
        num_mels=80,
        budget=BatchBudget(8, 20.0, 1),
        max_seconds=20.0,
        seed=1,
        rank=0,
        world_size=1,
    )
    steps = stream.steps(0)
    try:
        return list(itertools.islice(steps, 2))
    finally:
        steps.close()


def causes(shards: Path | str, tokenizer) -> dict[str, str]:
    """Bad samples of the first steps; every other one has labels."""
    steps = first_step(str(shards), tokenizer)
    bad = {item.key: item.cause for data in steps for item in data.bad_samples}
    for data in steps:
        for batch in data.batches:
            for row, key in enumerate(batch.keys):
                assert bool((batch.label_ids[row] != IGNORED_LABEL).any()) == (key not in bad)
    assert "good" in {key for data in steps for key in data.keys}
    assert "good" not in bad
    return bad


CASES = {
    "half a surrogate pair": (clip(1.0), b'{"text": "a \\ud800 b", "language": "en", "duration": 1.0}', "text"),
    "null for a text": (clip(1.0), details(text=None, language="en", duration=1.0), "text"),
    "a list for a text": (clip(1.0), details(text=["a"], language="en", duration=1.0), "text"),
    "a number for a text": (clip(1.0), details(text=5, language="en", duration=1.0), "text"),
    "200,000 words in a second": (clip(1.0), details(text="lamp " * 200_000, language="en", duration=1.0), "too much text"),
    "a header of 2^36 samples": (flac_that_claims(2**36 - 1), details(text="a", language="en", duration=1.0), "decode"),
    "an hour declared as a second": (flac_of_zeros(3600), details(text="a", language="en", duration=1.0), "length"),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_counted_by_its_cause_and_the_rest_is_trained_on(tmp_path, tokenizer, case):
    content, text, cause = CASES[case]
    write_index(index_shard(str(make_tar(tmp_path / "x.tar", [*GOOD, ("bad.flac", content), ("bad.json", text)]))))
    began = time.monotonic()
    assert causes(tmp_path / "x.tar", tokenizer) == {"bad": cause}
    assert time.monotonic() - began < patience(10)


def test_an_hour_declared_as_a_second_isnt_decoded_to_its_end():
    content = flac_of_zeros(3600)
    began = time.process_time()
    with pytest.raises(BadSampleError, match=r"length: more than 1\.10 s"):
        decode(content, expected_seconds=1.0)
    # all of it takes over a second
    assert time.process_time() - began < 0.2


def edit_index(path: Path, **changes) -> None:
    """Change fields of the sample "bad"."""
    beside = Path(f"{path}{INDEX_SUFFIX}")
    content = json.loads(beside.read_text())
    names = ["key", "seconds", "language", "audio_offset", "audio_bytes", "text_offset", "text_bytes", "text_is_json"]
    for row in content["samples"]:
        if row[0] == "bad":
            for name, value in changes.items():
                row[names.index(name)] = value
    beside.write_text(json.dumps(content))


@pytest.fixture
def shard(tmp_path) -> Path:
    path = make_tar(tmp_path / "x.tar", [*GOOD, ("bad.flac", clip(1.0)), ("bad.json", details(text="a", language="en"))])
    write_index(index_shard(str(path)))
    return path


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 0, -1.0, 1e300])
def test_an_impossible_length_in_an_index_is_the_samples_own_fault(shard, tokenizer, seconds):
    edit_index(shard, seconds=seconds)
    assert causes(shard, tokenizer) == {"bad": "no length"}


def test_an_impossible_length_in_a_merged_index_is_the_samples_own_fault(shard, tokenizer):
    table = SampleTable.of([read_index(str(shard))])
    table.columns["seconds"][1] = np.nan
    write_merged(table, shard.with_name("all.index"))
    assert causes(shard.with_name("all.index"), tokenizer) == {"bad": "no length"}


def test_text_that_lies_inside_the_audio_is_the_samples_own_fault(shard, tokenizer):
    bad = next(sample for sample in read_index(str(shard)).samples if sample.key == "bad")
    edit_index(shard, text_offset=bad.audio_offset + 1024, text_bytes=100)
    assert causes(shard, tokenizer) == {"bad": "shard"}


@pytest.mark.parametrize(
    "changes",
    [{"audio_bytes": 10**12}, {"audio_offset": -5}, {"text_bytes": "7"}, {"key": 3}, {"seconds": None}, {"key": ["x" * 50_000]}],
)
def test_an_index_that_names_what_a_shard_cannot_have_is_refused(shard, changes):
    edit_index(shard, **changes)
    with pytest.raises(DataError, match="can't be understood") as told:
        read_index(str(shard))
    assert len(str(told.value)) < 1000


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"a":' * 100_000, b'{"text": ' + b"1" * 5_000 + b"}", b"\xff\xfe\xfd", b"[]"]
)
def test_a_json_that_is_none_has_no_transcript(content):
    with pytest.raises(ValueError):
        parse_transcript(content, is_json=True)


def test_the_first_text_that_is_one_is_taken():
    assert parse_transcript(details(text=None, sentence=" hello "), is_json=True) == "hello"
    assert parse_transcript(b"\xef\xbb\xbfhello", is_json=False) == "hello"


def test_whatever_a_tokenizer_raises_is_the_samples_own_fault(shard, tokenizer, monkeypatch):
    def refuse(tokenizer, transcript, **options):
        if transcript == "a":
            raise OverflowError("no such token")
        return label_ids(tokenizer, transcript, **options)

    monkeypatch.setattr("kappaspeech.speech.stream.label_ids", refuse)
    assert causes(shard, tokenizer) == {"bad": "unusable"}


def test_special_tokens_in_a_transcript_are_text(tokenizer):
    ids = label_ids(tokenizer, "turn </s> the <s> lamp")
    assert ids.index(tokenizer.eos_token_id) == len(ids) - 1
    assert tokenizer.bos_token_id not in ids
    assert tokenizer.decode(ids[:-1]) == "turn </s> the <s> lamp"


def test_fast_speech_in_bytes_is_not_too_much_text(tokenizer):
    # ten words a second of a script that this tokenizer knows by its bytes alone
    assert len(label_ids(tokenizer, "нет да " * 5, seconds=1.0)) > 50
    with pytest.raises(BadSampleError, match="too much text"):
        label_ids(tokenizer, "нет да " * 100, seconds=1.0)
