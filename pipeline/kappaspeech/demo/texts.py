"""English and German prose, one passage a line, on which forgetting is measured if the user brings no text."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from kappaspeech.artefacts import write_text

LANGUAGES = ("en", "de")


def write_texts(folder: Path) -> list[Path]:
    """Write `folder`/en.txt and de.txt; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for language in LANGUAGES:
        content = resources.files("kappaspeech.demo").joinpath("text", f"{language}.txt").read_text(encoding="utf-8")
        write_text(folder / f"{language}.txt", content)
        paths.append(folder / f"{language}.txt")
    return paths
