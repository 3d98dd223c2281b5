"""Multiple choice and instructions in English and German, on which forgetting is measured if the user brings no tasks.

Right answers are so by construction: each is in a row of a table, and wrong ones are in other rows, or beside it. Whether an
instruction was followed a program can tell.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from kappaspeech.demo.texts import LANGUAGES
from kappaspeech.json_lines import write_lines

_NUM_CHOICES = 4
_SEED = 17


def make_items(language: str) -> list[dict[str, Any]]:
    """All questions of a language of the demo, as a file of `data.tasks` has them; in each group the right choice has every place
    about as often.
    """
    return [item for block in _blocks(f"tasks_{language}.txt") for item in _items_of(block)]


def make_instructions(language: str) -> list[dict[str, Any]]:
    """All instructions of a language of the demo, as a file of `data.tasks` has them."""
    return [item for block in _blocks(f"instructions_{language}.txt") for item in _instructions_of(block)]


def write_tasks(folder: Path) -> list[Path]:
    """Write `folder`/en.jsonl and de.jsonl; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for language in LANGUAGES:
        paths.append(folder / f"{language}.jsonl")
        write_lines(paths[-1], [*make_items(language), *make_instructions(language)])
    return paths


def _blocks(name: str) -> Iterator[list[str]]:
    """The tables of a text: a line that says what its rows have in common, then these."""
    content = resources.files("kappaspeech.demo").joinpath("text", name).read_text(encoding="utf-8")
    for block in content.split("\n\n"):
        lines = [line for line in block.splitlines() if line and not line.startswith("#")]
        if lines:
            yield lines


def _items_of(block: Sequence[str]) -> list[dict[str, Any]]:
    """The items of a table "group | question with {}", whose rows are "subject | answer | wrong answer | …"; without wrong ones,
    they are other rows' answers."""
    group, question = (part.strip() for part in block[0].split("|"))
    rows = [[part.strip() for part in line.split("|")] for line in block[1:]]
    source = random.Random(f"{group}/{question}/{_SEED}")
    answers = list(dict.fromkeys(row[1] for row in rows))
    # each place as often as any other, in an order that tells nothing
    places = [number % _num_choices(row) for number, row in enumerate(rows)]
    source.shuffle(places)
    items = []
    for (subject, right, *wrong), place in zip(rows, places, strict=True):
        others = wrong or source.sample([answer for answer in answers if answer != right], _NUM_CHOICES - 1)
        others.insert(place, right)
        items.append({"group": group, "question": question.replace("{}", subject), "choices": others, "answer": place})
    return items


def _num_choices(row: Sequence[str]) -> int:
    return len(row) - 1 if len(row) > 2 else _NUM_CHOICES


def _instructions_of(block: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The instructions of a table "checks | what the user says", which both may have {0} and {1} of a row "… | …"."""
    for row in block[1:]:
        line = block[0]
        for place, part in enumerate(row.split("|")):
            line = line.replace(f"{{{place}}}", part.strip())
        checks, text = line.split(" | ")
        yield {"instruction": text, "checks": json.loads(checks)}
