"""Commands that print where nothing can be printed, or not every letter."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from kappaspeech.commands.streams import quiet_libraries
from tests.patience import patience

PLAIN = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def run(words: list[str], *, stdout, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kappaspeech", *words],
        stdout=stdout,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, **variables},
        cwd=Path(__file__).parents[3],
        timeout=patience(60),
    )


@pytest.fixture(params=["show", "select"])
def words(request, home, tmp_path) -> list[str]:
    more = [] if request.param == "show" else ["--count", "2", "--output", str(tmp_path / "s.json")]
    return [request.param, str(home / "ranking.json"), *more]


def test_a_terminal_without_unicode_gets_escapes(words):
    done = run(words, stdout=subprocess.PIPE, **PLAIN)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()


def test_a_full_disk_is_a_sentence(words):
    with open("/dev/full", "w") as full:
        done = run(words, stdout=full)
    assert done.returncode == 2
    assert done.stderr == "error: Standard output can't be written: No space left on device.\n"


def test_a_reader_that_has_gone_is_no_traceback(words):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        done = run(words, stdout=gone)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_standard_output_costs_nothing_but_the_text(words, closed):
    shell = ["sh", "-c", f'exec "{sys.executable}" -m kappaspeech "$@" {closed}', "sh", *words]
    done = subprocess.run(
        shell,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
        timeout=patience(60),
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


@pytest.mark.parametrize(("asked_for", "shown"), [([], 0), (["default"], 1)])
def test_warnings_of_libraries_are_shown_only_if_they_are_asked_for(monkeypatch, asked_for, shown):
    monkeypatch.setattr(sys, "warnoptions", asked_for)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with quiet_libraries():
            warnings.warn("it will be removed", FutureWarning, stacklevel=1)
        assert len(seen) == shown
        # afterwards they are whoever's they were
        warnings.warn("it will be removed", FutureWarning, stacklevel=1)
        assert len(seen) == shown + 1
