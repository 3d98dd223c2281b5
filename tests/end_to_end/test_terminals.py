"""Output of scan, plan, doctor and train on terminals of 80 and 40 columns and in pipes; show is in test_show.py."""

from __future__ import annotations

import pytest

from tests import tiny
from tests.terminals import run_in_pipes, run_on_terminal

pytestmark = pytest.mark.slow
# what libraries say of themselves, which belongs into a log
NOISE = ("[INFO] [real_accelerator", "FutureWarning", "UserWarning", "Loading weights", "it/s]", "generation flags", "\x1b")


def words_of(command: str, home, folder) -> list[str]:
    if command == "scan":
        return ["scan", str(home / "llm"), "--output", str(folder / "ranking.json"), "--no-journal", "--workers", "1"]
    # transformers calls the way to this deprecated
    changes = {"training__num_steps": 2, "training__activation_checkpointing": True}
    config = tiny.write_config(folder / "run.yaml", home, folder / "run", **changes)
    return [command, str(config)]


ENDS = {"scan": "next: kappaspeech select", "plan": "the run: ", "doctor": "problem(s)", "train": "run.md"}


@pytest.mark.parametrize("columns", [80, 40])
@pytest.mark.parametrize("command", ENDS)
def test_a_terminal_shows_the_result_without_colours_or_noise(home, tmp_path, command, columns):
    text, code = run_on_terminal(words_of(command, home, tmp_path), columns=columns)
    assert code == 0, text
    assert ENDS[command] in text.replace("\n", " ")
    assert [noise for noise in NOISE if noise in text] == []
    if command == "scan":
        assert "…" not in text
        table = [line for line in text.splitlines() if line.startswith("  ")]
        assert len(table) > 5
        assert max(map(len, table)) <= 60


@pytest.mark.parametrize("command", ENDS)
def test_a_pipe_gets_lines_without_codes_or_noise(home, tmp_path, command):
    done = run_in_pipes(words_of(command, home, tmp_path))
    assert done.returncode == 0, done.stderr
    assert ENDS[command] in done.stdout
    assert [noise for noise in NOISE if noise in done.stdout + done.stderr] == []
