"""The English of code and documents, as far as a program can judge it."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents import PAGES, REPOSITORY

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
# what such a docstring describes, its name alone says
PREPOSITIONS = {"At", "Beside", "By", "For", "From", "In", "Of", "On", "With", "Without"}
# A place may follow "where" too, so these are its uses that can be nothing but a condition's.
CONDITION = re.compile(
    r"(?:\A|[.;:] )Where (?!to\b)"
    r"|\b(?:but|else|also|even|only|or|[Nn]othing|[Nn]one|null|True|False|0|\w*Error`?),? where "
    r"(?!in\b|it is\b|it lies\b|these\b)"
    r"|\bwhere (?:there (?:is|are|was|were) (?:a|an|more|no|none|one)\b|known\b|nobody\b|somebody\b|possible\b|needed\b"
    r"|that may\b|that is (?:asked|possible)\b|it has\b|it can\b|they can\b|none\b)"
)


def texts() -> Iterator[Path]:
    listed = [*REPOSITORY.glob("*"), *(path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*"))]
    return (path for path in listed if path.suffix in TEXTS and path.is_file())


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Each docstring of a module with the name of what it describes."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield getattr(node, "name", "the module"), text


def texts_of_code(path: Path) -> Iterator[tuple[str, str]]:
    """Each docstring, comment and message of a module, on one line, with its place."""
    source = path.read_text(encoding="utf-8")
    yield from ((name, " ".join(text.split())) for name, text in docstrings(path))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    yield from ((f"line {token.start[0]}", token.string.lstrip("# ")) for token in tokens if token.type == tokenize.COMMENT)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield f"line {node.lineno}", " ".join(node.value.split())


def test_english_has_plain_quotes():
    found = {path.relative_to(REPOSITORY).as_posix() for path in texts() if re.search("[«»]", path.read_text(encoding="utf-8"))}
    assert found - WITH_GUILLEMETS == set()
    # the search sees them, and the list above has no name too many
    assert found == WITH_GUILLEMETS


@pytest.mark.parametrize(
    ("text", "is_condition"),
    [
        ("Where a rank is alone, nothing is sent.", True),
        ("The rate; None where it isn't known.", True),
        ("Raises `ConfigError` where it tests on nothing.", True),
        ("Blocks are read again where that may help.", True),
        ("What lies where, so that a sample is one read away.", False),
        ("A killed scan continues where it stopped.", False),
        ("Its shard, and where in it.", False),
        ("## Where to go", False),
    ],
)
def test_a_condition_is_told_from_a_place(text, is_condition):
    assert bool(CONDITION.search(text)) is is_condition


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_condition_begins_with_if(folder):
    paths = sorted((REPOSITORY / folder).rglob("*.py"))
    read = [(path, place, text) for path in paths for place, text in texts_of_code(path)]
    assert len(read) > 20
    # the examples above are none
    found = [
        f"{path.relative_to(REPOSITORY)}: {place}: {text[:200]}"
        for path, place, text in read
        if CONDITION.search(text) and path != Path(__file__)
    ]
    assert found == []


def test_a_condition_of_a_document_begins_with_if():
    paragraphs = {
        f"{page.name}: {text[:200]}": CONDITION.search(" ".join(text.split()))
        for page in [*PAGES, REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "SECURITY.md", REPOSITORY / "CHANGELOG.md"]
        for text in re.split(r"\n\n|\n[-|#]", page.read_text(encoding="utf-8"))
    }
    assert len(paragraphs) > 200
    assert [place for place, found in paragraphs.items() if found] == []


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


@pytest.mark.parametrize("folder", ["pipeline", "launch", "docs", "benchmarks"])
def test_a_docstring_names_what_it_describes(folder):
    paths = sorted((REPOSITORY / folder).rglob("*.py"))
    fragments = [
        f"{path.relative_to(REPOSITORY)}: {name}: {text.splitlines()[0]}"
        for path in paths
        for name, text in docstrings(path)
        if re.split(r"\W", text, maxsplit=1)[0] in PREPOSITIONS or re.match(r"Raises `", text)
    ]
    assert fragments == []
