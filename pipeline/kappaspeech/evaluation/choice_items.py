"""Tasks read from a file, and the rows of tokens in which a causal LLM reads each choice of a question once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kappaspeech.artefacts import digest_json
from kappaspeech.errors import DataError
from kappaspeech.evaluation.forgetting import WINDOW_TOKENS
from kappaspeech.evaluation.instruction_checks import Instruction, parse_instruction
from kappaspeech.speech.text_files import check_unicode, parse_object, read_lines

_FORM = '{"group": "opposites", "question": "The opposite of hot is", "choices": ["wet", "cold"], "answer": 1}'
_INSTRUCTION_FORM = '{"instruction": "Describe the sea in at most 15 words.", "checks": [{"kind": "words", "most": 15}]}'
_KEYS = {"group", "question", "choices", "answer"}


@dataclass(frozen=True)
class Item:
    """A question, which may be empty, its choices, the index of the right one, and the group in which it is counted."""

    question: str
    choices: tuple[str, ...]
    answer: int
    group: str = ""

    def to_json(self) -> dict[str, Any]:
        group = {"group": self.group} if self.group else {}
        return {**group, "question": self.question, "choices": list(self.choices), "answer": self.answer}


Task = Item | Instruction


def read_items(path: Path) -> list[Task]:
    """The tasks of a file, one JSON object a line, blank lines left out. Raises `DataError`, which names the line."""
    tasks: list[Task] = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        wanted = f"A line is a question with its choices: {_FORM}"
        try:
            fields = parse_object(line)
            if "instruction" in fields:
                wanted = f"Such a line is: {_INSTRUCTION_FORM}"
                tasks.append(parse_instruction(fields))
            else:
                tasks.append(_parse_item(fields))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}. {wanted}") from error
    if not tasks:
        raise DataError(f"{path} holds no question and no instruction. Wanted is one a line: {_FORM} or {_INSTRUCTION_FORM}")
    return tasks


def digest_items(items: Sequence[Task]) -> str:
    """A digest of tasks in their order."""
    return digest_json([item.to_json() for item in items])


def _parse_item(fields: Mapping[str, Any]) -> Item:
    unknown = sorted(fields.keys() - _KEYS)
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no part of a question")
    question, group, choices = fields.get("question", ""), fields.get("group", ""), fields.get("choices")
    for name, text in (("question", question), ("group", group)):
        if not isinstance(text, str):
            raise ValueError(f"{name} is no text")
        check_unicode(text)
    if not isinstance(choices, list) or len(choices) < 2:
        raise ValueError("choices is no list of two texts or more")
    for choice in choices:
        if not isinstance(choice, str) or not choice.strip():
            raise ValueError("one of the choices is empty, or no text")
        check_unicode(choice)
    texts = tuple(choice.strip() for choice in choices)
    if len(set(texts)) < len(texts):
        raise ValueError("two of the choices are the same")
    answer = fields.get("answer")
    if type(answer) is not int or not 0 <= answer < len(texts):
        raise ValueError(f"answer is {answer!r}, not the index of a choice, 0 to {len(texts) - 1}")
    return Item(question.strip(), texts, answer, group.strip())


@dataclass(frozen=True)
class Foretold:
    """A choice in a row of tokens: `tokens` are foretold from position `start` on."""

    choice: int
    start: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """Tokens that an LLM reads at once, and the choices whose likelihood is read off its answer."""

    ids: tuple[int, ...]
    foretold: tuple[Foretold, ...]


def make_rows(tokenizer: Any, items: Sequence[Item]) -> list[Row]:
    """The rows of all choices, which are counted through all items: each is read in one row, and a row that begins another is a
    part of it, so that choices of one token need a single row.

    A choice follows its question after a space, or a token of the tokenizer's own if there is no question, and its tokens are
    those that the two together have more, as in lm-evaluation-harness. Raises `DataError` for an item that is too long.
    """
    begin = _begin_ids(tokenizer)
    foretold_by_ids: dict[tuple[int, ...], list[Foretold]] = {}
    number = 0
    for item in items:
        # without a question there is something to foretell the first token from
        asked = (*begin, *_encode(tokenizer, item.question)) if item.question else begin or (_end_id(tokenizer),)
        for choice in item.choices:
            whole = (*begin, *_encode(tokenizer, f"{item.question} {choice}")) if item.question else ()
            whole = whole or (*asked, *_encode(tokenizer, choice))
            if not 2 <= len(whole) <= WINDOW_TOKENS:
                shown = f"{item.question} {choice}"[:60]
                raise DataError(f"data.tasks: {shown!r} has {len(whole)} tokens, and wanted are 2 to {WINDOW_TOKENS}. Change it.")
            # tokens may go over the border; at least the last one is the choice's
            start = min(len(asked), len(whole) - 1)
            ids = tuple(whole[:-1])
            foretold_by_ids.setdefault(ids, []).append(Foretold(number, start - 1, tuple(whole[start:])))
            number += 1
    rows: list[Row] = []
    # in this order a beginning stands right before what it begins
    for ids, foretold in sorted(foretold_by_ids.items(), reverse=True):
        if rows and rows[-1].ids[: len(ids)] == ids:
            rows[-1] = Row(rows[-1].ids, (*rows[-1].foretold, *foretold))
        else:
            rows.append(Row(ids, tuple(foretold)))
    return rows


def cut_batches(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows in batches of like length, each of at most `WINDOW_TOKENS` padded tokens; a function of the rows alone."""
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: (-len(row.ids), row.ids)):
        # the first of a batch is its longest
        if batches and (len(batches[-1]) + 1) * len(batches[-1][0].ids) <= WINDOW_TOKENS:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _encode(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _begin_ids(tokenizer: Any) -> tuple[int, ...]:
    """The token that the tokenizer puts before any text, or none."""
    ids = tuple(tokenizer("")["input_ids"][:1])
    return ids if ids and ids[0] == tokenizer.bos_token_id else ()


def _end_id(tokenizer: Any) -> int:
    return next((token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None), 0)
