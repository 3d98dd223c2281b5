"""The English of code and documents, as far as a program can judge it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents import REPOSITORY

FOLDERS = ("pipeline", "launch", "docs", "benchmarks", "tests")
# German prose, and characters that are data
WITH_GUILLEMETS = {
    "pipeline/kappaspeech/demo/text/de.txt",
    "pipeline/kappaspeech/redaction.py",
    "tests/unit/test_redaction.py",
    "tests/unit/test_escaping.py",
    "tests/unit/test_english.py",
}
TEXTS = {".py", ".md", ".sh", ".txt", ".yaml", ".yml", ".json", ".jinja", ".js", ".css", ".cff", ".def", ".sbatch", ".toml"}
# a name or a statement begins otherwise
QUESTIONS = {"What", "Which", "How", "Whether", "Where", "When", "Why", "Who", "Whatever", "Whoever"}


def texts() -> Iterator[Path]:
    listed = [*REPOSITORY.glob("*"), *(path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*"))]
    return (path for path in listed if path.suffix in TEXTS and path.is_file())


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Each docstring of a module with the name of what it describes."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield getattr(node, "name", "the module"), text


def test_english_has_plain_quotes():
    found = {path.relative_to(REPOSITORY).as_posix() for path in texts() if re.search("[«»]", path.read_text(encoding="utf-8"))}
    assert found - WITH_GUILLEMETS == set()
    # the search sees them, and the list above has no name too many
    assert found == WITH_GUILLEMETS


@pytest.mark.parametrize("folder", ["pipeline", "launch", "docs"])
def test_a_condition_begins_with_if(folder):
    paths = sorted((REPOSITORY / folder).rglob("*.py"))
    places = {
        f"{path.relative_to(REPOSITORY)}: {name}": found
        for path in paths
        for name, text in docstrings(path)
        if (found := re.findall(r"[Rr]aises? `\w+` where|(?:None|True|False) where", text))
    }
    assert places == {}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_docstring_begins_with_a_name_or_a_statement(folder):
    paths = sorted((REPOSITORY / folder).rglob("*.py"))
    described = [(path, name, text) for path in paths for name, text in docstrings(path)]
    assert len(described) > 3
    asked = [
        f"{path.relative_to(REPOSITORY)}: {name}: {text.splitlines()[0]}"
        for path, name, text in described
        if re.split(r"\W", text, maxsplit=1)[0] in QUESTIONS
    ]
    assert asked == []
