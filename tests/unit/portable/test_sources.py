"""The code of an export: the package's own modules, which need nothing of the package."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from kappaspeech.portable.sources import AUTO_MAP, read_sources

PACKAGES = {"torch", "numpy", "transformers", *sys.stdlib_module_names}
# tried where they are needed, and missed with a sentence
TRIED = {"soundfile", "soxr"}


def imported(text: str) -> tuple[set[str], set[str]]:
    """Packages and neighbours that a file imports, anywhere in it."""
    packages, neighbours = set(), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            neighbours.add(f"{node.module}.py")
        elif isinstance(node, ast.ImportFrom):
            packages.add(str(node.module).partition(".")[0])
    return packages, neighbours


def test_an_exports_code_needs_transformers_alone():
    sources = read_sources()
    assert {"modeling_kappaspeech.py", "processing_kappaspeech.py", "adaptor.py", "splicing.py"} <= set(sources)
    for name, text in sources.items():
        packages, neighbours = imported(text)
        assert packages <= PACKAGES | TRIED, name
        assert neighbours <= set(sources), name


def test_transformers_finds_the_classes_by_the_map():
    sources = read_sources()
    for place in AUTO_MAP.values():
        module, _, name = place.partition(".")
        assert f"class {name}(" in sources[f"{module}.py"]


def test_a_file_is_the_packages_own_but_for_its_imports():
    from kappaspeech.model import adaptor, splicing

    for module in (adaptor, splicing):
        ours = Path(module.__file__).read_text(encoding="utf-8").splitlines()
        theirs = read_sources()[f"{module.__name__.rpartition('.')[2]}.py"].splitlines()
        assert len(ours) == len(theirs)
        assert all(line == other or line.startswith("from kappaspeech.") for line, other in zip(ours, theirs, strict=True))
