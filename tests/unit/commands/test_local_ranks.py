"""--nproc of `evaluate` and `transcribe`: the ranks are asked for what the command was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from kappaspeech.commands import app, main
from kappaspeech.commands.local_ranks import to_words

EVERYTHING = {
    "evaluate": (
        "evaluate --step 3 --data a.tar --data -b.tar --instruction {audio}? --hot-words x,y --text en=t --tasks en=q --base llm "
        "--against h.jsonl --normalisers --compounds --batch-size 2 --num-beams 3 --max-new-tokens 9 --max-utterances 8 "
        "--lm-eval one --lm-eval two --no-page --output e.json"
    ),
    "transcribe": (
        "transcribe --format srt --output out --step best --base llm --batch-size 3 --max-new-tokens 9 --num-beams 2 "
        "--instruction {audio}? --hot-words x,y --piece-seconds 5"
    ),
}
ARGUMENTS = {"evaluate": ["-run"], "transcribe": ["-run", "-clip.wav", "other.wav"]}
ARGUMENT_NAMES = {"evaluate": ["model"], "transcribe": ["model", "recordings"]}


def parse(words: list[str]) -> dict[str, Any]:
    """The values of a command's parameters, by their names."""
    command: Any = get_command(app)
    return dict(command.commands[words[0]].make_context(words[0], words[1:]).params)


def test_options_become_words_of_a_command_line():
    options = {"step": 3, "data": ["a", "-b"], "no_page": True, "compounds": False, "base": None, "output": Path("x y")}
    assert to_words(options) == ["--step=3", "--data=a", "--data=-b", "--no-page", "--output=x y"]


@pytest.mark.parametrize("command", EVERYTHING)
@pytest.mark.parametrize("is_short", [True, False])
def test_ranks_get_every_option_and_argument_but_nproc(command, is_short, monkeypatch):
    started = []

    def run_workers(words, *, num_workers, **_rest):
        started.append((list(words), num_workers))
        return 0

    monkeypatch.setattr("kappaspeech.ranks.workers.run_workers", run_workers)
    given = [command] if is_short else EVERYTHING[command].split()
    own = parse([*given, "--", *ARGUMENTS[command]])
    if not is_short:
        defaults = parse([command, "--", *ARGUMENTS[command]])
        assert [name for name, value in own.items() if value == defaults[name]] == [*ARGUMENT_NAMES[command], "nproc"]
    assert main([*given, "--nproc", "2", "--", *ARGUMENTS[command]]) == 0
    ((words, num_ranks),) = started
    assert (num_ranks, parse(words)) == (2, own)
