"""The demo's questions: right by construction, and nothing in their form tells the answer."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import pytest

from kappaspeech.demo.tasks import make_instructions, make_items, write_tasks
from kappaspeech.evaluation.choice_items import Item, read_items
from kappaspeech.evaluation.instruction_checks import KINDS, parse_instruction


@pytest.fixture(params=["en", "de"])
def items(request):
    return [Item(item["question"], tuple(item["choices"]), item["answer"], item["group"]) for item in make_items(request.param)]


def groups_of(items):
    return {group: list(part) for group, part in itertools.groupby(items, key=lambda item: item.group)}


def test_what_is_written_is_read_again_and_is_the_same_each_time(tmp_path):
    paths = write_tasks(tmp_path / "one")
    assert [path.name for path in paths] == ["en.jsonl", "de.jsonl"]
    for path, other in zip(paths, write_tasks(tmp_path / "two"), strict=True):
        assert path.read_bytes() == other.read_bytes()
        assert [item.to_json() for item in read_items(path)] == make_items(path.stem) + make_instructions(path.stem)


def test_there_are_enough_and_none_comes_twice(items):
    assert 130 <= len(items) <= 180
    assert len({(item.question, frozenset(item.choices)) for item in items}) == len(items)
    assert min(len(part) for part in groups_of(items).values()) >= 12


def test_the_right_choice_stands_in_every_place_as_often(items):
    for part in groups_of(items).values():
        places = Counter(item.answer for item in part)
        sizes = [places[place] for place in range(len(part[0].choices))]
        assert max(sizes) - min(sizes) <= 1


def test_sums_are_right(items):
    sums = groups_of(items)["sums"]
    for item in sums:
        first, second = map(int, re.findall(r"(\d+) \+ (\d+)", item.question)[-1])
        assert item.choices[item.answer] == str(first + second)


def test_where_wrong_choices_are_other_rows_answers_the_right_one_is_its_own_rows():
    opposites = {re.findall('"(.*)"', item["question"])[0]: item for item in make_items("en") if item["group"] == "opposites"}
    right = {word: item["choices"][item["answer"]] for word, item in opposites.items()}
    assert (right["hot"], right["left"]) == ("cold", "right")
    assert all(set(item["choices"]) <= set(right.values()) for item in opposites.values())


@pytest.mark.parametrize("language", ["en", "de"])
def test_instructions_are_of_all_kinds_and_none_comes_twice(language):
    found = [parse_instruction(fields) for fields in make_instructions(language)]
    assert 50 <= len({item.text for item in found}) == len(found) <= 60
    assert {check.kind for item in found for check in item.checks} == set(KINDS)
    assert any(len(item.checks) > 1 for item in found)
    assert not any("{" in item.text for item in found)
    # what an answer must have or must not have is said
    for item in found:
        for check in item.checks:
            said = [
                *check.parameters.get("words", []),
                *(check.parameters.get("text", "").strip(",") and [check.parameters["text"]]),
            ]
            assert all(word in item.text for word in (*said, *check.parameters.get("texts", [])))
