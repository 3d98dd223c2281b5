"""Files of questions, and the rows in which an LLM reads each choice once."""

from __future__ import annotations

import copy
import json

import pytest

from kappaspeech.errors import DataError
from kappaspeech.evaluation.choice_items import Item, cut_batches, digest_items, make_rows, read_items
from kappaspeech.evaluation.forgetting import WINDOW_TOKENS
from kappaspeech.model.llm import load_tokenizer

GOOD = {"question": "turn the lamp", "choices": ["on", "off"], "answer": 0}


@pytest.fixture(scope="module")
def tokenizer(home):
    return load_tokenizer(str(home / "llm"))


def write(path, *lines) -> None:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines), encoding="utf-8")


def test_items_are_read_as_they_are_written(tmp_path):
    items = [Item("öffne die", ("Tür", "Küche", "Lampe"), 2, "verbs"), Item("", ("a b", "b a"), 0)]
    write(tmp_path / "t.jsonl", *(item.to_json() for item in items), "", "  ")
    assert read_items(tmp_path / "t.jsonl") == items
    assert digest_items(items) != digest_items(items[::-1])


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("{", "Expecting property name"),
        ("[1]", "not an object"),
        ({**GOOD, "anser": 1}, "'anser' is no part of a question"),
        ({**GOOD, "question": 5}, "question is no text"),
        ({**GOOD, "group": None}, "group is no text"),
        ({"question": "turn"}, "choices is no list of two texts or more"),
        ({**GOOD, "choices": ["on"]}, "choices is no list of two texts or more"),
        ({**GOOD, "choices": "on"}, "choices is no list of two texts or more"),
        ({**GOOD, "choices": ["on", " "]}, "one of the choices is empty, or no text"),
        ({**GOOD, "choices": ["on", 1]}, "one of the choices is empty, or no text"),
        ({**GOOD, "choices": ["on", "on "]}, "two of the choices are the same"),
        ({**GOOD, "choices": ["on", "\ud800"]}, "half a character"),
        ({**GOOD, "answer": 2}, "answer is 2, not the index of a choice, 0 to 1"),
        ({**GOOD, "answer": -1}, "answer is -1"),
        ({**GOOD, "answer": True}, "answer is True"),
        ({"question": "turn", "choices": ["on", "off"]}, "answer is None"),
    ],
)
def test_a_malformed_line_is_refused_by_its_number_with_the_form_of_a_right_one(tmp_path, line, cause):
    write(tmp_path / "t.jsonl", GOOD, "", line)
    with pytest.raises(DataError) as caught:
        read_items(tmp_path / "t.jsonl")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 't.jsonl'}, line 3: ")
    assert cause in message
    # the example is a line that is read
    write(tmp_path / "example.jsonl", message[message.index('{"group"') :])
    assert read_items(tmp_path / "example.jsonl")[0].answer == 1


def test_questions_and_instructions_stand_in_one_file_and_a_malformed_instruction_is_refused_like_a_question(tmp_path):
    path = tmp_path / "t.jsonl"
    instruction = {"instruction": "Say it in lower case.", "checks": [{"kind": "lower_case"}]}
    write(path, GOOD, instruction)
    assert [item.to_json() for item in read_items(path)] == [GOOD, instruction]
    write(path, GOOD, {**instruction, "checks": [{"kind": "loud"}]})
    with pytest.raises(DataError, match=r"t\.jsonl, line 2: .*its kind is none of words") as caught:
        read_items(path)
    message = str(caught.value)
    write(path, message[message.index('{"instruction"') :])
    assert len(read_items(path)) == 1


def test_a_file_without_questions_is_refused(tmp_path):
    write(tmp_path / "t.jsonl", "")
    for path in (tmp_path / "t.jsonl", tmp_path / "missing.jsonl", tmp_path):
        with pytest.raises(DataError, match=path.name):
            read_items(path)


def spell_out(rows) -> dict[int, tuple[tuple[int, ...], tuple[int, ...]]]:
    """By choice, the tokens before it and its own."""
    return {item.choice: (row.ids[: item.start + 1], item.tokens) for row in rows for item in row.foretold}


def test_a_choice_is_what_question_and_choice_have_more_than_the_question(tokenizer):
    items = [Item("turn the red lamp", ("on", "on and on", "off"), 0), Item("", ("die Tür", "Tür die"), 1)]
    found = spell_out(make_rows(tokenizer, items))
    question = tuple(tokenizer("turn the red lamp")["input_ids"])
    for choice, text in enumerate(items[0].choices):
        assert found[choice] == (question, tuple(tokenizer(f" {text}")["input_ids"]))
    for choice, text in enumerate(items[1].choices, start=3):
        assert found[choice] == ((tokenizer.bos_token_id,), tuple(tokenizer(text)["input_ids"]))
    assert sorted(found) == [0, 1, 2, 3, 4]


def test_what_a_tokenizer_puts_before_a_text_stands_before_it_once(tokenizer):
    from tokenizers.processors import TemplateProcessing

    begin = copy.deepcopy(tokenizer)
    begin.backend_tokenizer.post_processor = TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 1)])
    assert begin("turn")["input_ids"][0] == begin.bos_token_id == 0
    for before, tokens in spell_out(
        make_rows(begin, [Item("turn the", ("lamp", "red lamp"), 0), Item("", ("a", "b"), 0)])
    ).values():
        assert before[0] == 0
        assert not {0, 1} & {*before[1:], *tokens}


def test_choices_of_one_token_and_choices_that_begin_others_need_no_row_of_their_own(tokenizer):
    rows = make_rows(tokenizer, [Item("xyz", ("q", "q q", "q q q", "q q z"), 0)])
    assert [sorted(item.choice for item in row.foretold) for row in rows] == [[0, 1, 2, 3]]
    # of two that part, each has a row
    assert len(make_rows(tokenizer, [Item("xyz", ("q q q", "z z z"), 0)])) == 2


def test_every_row_is_in_one_batch_of_no_more_tokens_than_a_window(tokenizer):
    items = [Item(f"turn the {'red ' * (number % 90)}lamp {number}", ("on", "off again"), 0) for number in range(200)]
    rows = make_rows(tokenizer, items)
    batches = cut_batches(rows)
    assert sorted(row.ids for batch in batches for row in batch) == sorted(row.ids for row in rows)
    assert 1 < len(batches) < len(rows) / 2
    for batch in batches:
        assert len(batch) * max(len(row.ids) for row in batch) <= WINDOW_TOKENS


def test_a_question_longer_than_a_window_is_refused(tokenizer):
    with pytest.raises(DataError, match=r"data\.tasks: 'on on .* has \d+ tokens, and wanted are 2 to 1024"):
        make_rows(tokenizer, [Item("on " * 2_000, ("on", "off"), 0)])
