"""The fixed part of a test set."""

from __future__ import annotations

import shutil
from collections import Counter

import pytest

from kappaspeech.config.data_config import DatasetConfig
from kappaspeech.speech.corpus import make_datasets, name_sets
from kappaspeech.speech.held_out import choose_subset, digest_test_samples, list_test_samples, read_clips, read_test_batches

SAMPLES = [*(("en", f"en/{i}") for i in range(90)), *(("de", f"de/{i}") for i in range(20)), ("fr", "fr/0")]


def chosen(count: int, samples: list[tuple[str, str]] = SAMPLES) -> list[tuple[str, str]]:
    return [samples[i] for i in choose_subset(samples, count)]


def test_a_part_has_the_same_share_of_each_language_as_far_as_it_goes():
    assert Counter(language for language, _ in chosen(31)) == {"en": 15, "de": 15, "fr": 1}
    assert Counter(language for language, _ in chosen(60)) == {"en": 39, "de": 20, "fr": 1}


def test_a_part_is_the_same_whatever_the_order_of_the_data():
    assert set(chosen(30)) == set(chosen(30, SAMPLES[::-1]))


def test_a_part_is_spread_over_the_data_and_holds_every_smaller_one():
    numbers = sorted(int(key.split("/")[1]) for language, key in chosen(41) if language == "en")
    assert len(numbers) == 20
    assert numbers[-1] - numbers[0] > 60
    assert set(chosen(30)) < set(chosen(41))


def test_a_part_as_large_as_the_whole_is_the_whole():
    assert chosen(len(SAMPLES)) == chosen(10_000) == SAMPLES


@pytest.mark.parametrize(
    ("sets", "names"),
    [
        ([{"shards": "a.tar"}], [""]),
        ([{"shards": "a.tar"}, {"shards": "b.tar"}], ["a.tar", "b.tar"]),
        ([{"shards": "a.tar", "language": "en"}, {"shards": "a.tar", "language": "de"}], ["a.tar (en)", "a.tar (de)"]),
        ([{"shards": "a.tar"}, {"shards": "a.tar", "instruction": "Answer"}], ["a.tar", "a.tar [2]"]),
        # parts of one set have its name, and one set needs none
        ([{"shards": "a.tar", "name": "near"}, {"shards": "b.tar", "name": "near"}], ["", ""]),
        ([{"shards": "a.tar", "name": "x"}, {"shards": "b.tar", "name": "x"}, {"shards": "c.tar"}], ["x", "x", "c.tar"]),
        ([{"shards": "https://me:secret@host/a.tar?token=1"}, {"shards": "b.tar"}], ["https://***@host/a.tar?***", "b.tar"]),
    ],
)
def test_sets_are_told_apart_by_name(sets, names):
    assert name_sets([DatasetConfig(**item) for item in sets]) == names


def test_a_sample_knows_the_set_and_the_instruction_that_it_is_tested_with(home):
    shards = str(home / "shards/test/*.tar")
    sets = [
        DatasetConfig(shards=shards, name="heard"),
        DatasetConfig(shards=shards, language="de", instruction="Answer: {audio}"),
    ]
    batches = read_test_batches(make_datasets(sets), batch_size=4)
    found = {(sample.dataset, sample.instruction, sample.language) for batch in batches for sample in batch}
    assert found == {("heard", None, "en"), ("heard", None, "de"), (f"{shards} (de)", "Answer: {audio}", "de")}
    refs = list_test_samples(make_datasets(sets))
    # the same keys in both sets
    assert len(read_clips(refs, max_bytes=1 << 20)) == len(refs)


def test_copies_of_a_test_set_are_the_same_and_one_that_lacks_a_sample_or_is_asked_otherwise_is_not(home, tmp_path):
    copied = shutil.copytree(home / "shards/test", tmp_path / "elsewhere")
    plain, asked = (
        [
            list_test_samples(make_datasets([DatasetConfig(shards=f"{folder}/*.tar", **options)]))
            for folder in (home / "shards/test", copied)
        ]
        for options in ({}, {"instruction": "Answer: {audio}"})
    )
    digest = digest_test_samples(plain[0])
    assert digest_test_samples(plain[1]) == digest
    assert digest_test_samples(asked[0]) == digest_test_samples(asked[1]) != digest
    assert digest_test_samples(plain[0][:-1]) != digest
    assert digest_test_samples(plain[0][::-1]) != digest
