"""Shared by the tests of documents: blocks of commands, and the strings of the code."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
PAGES = sorted([REPOSITORY / "README.md", *DOCS.rglob("*.md")])


@dataclass(frozen=True)
class Block:
    """A block of code, the comment before it, and its lines."""

    comment: str
    kind: str
    lines: tuple[str, ...]

    def is_run_by(self, test: str) -> bool:
        return self.comment == f"run by {Path(test).relative_to(REPOSITORY).as_posix()}"


def blocks(text: str, kind: str = "bash") -> list[Block]:
    """The blocks of one kind in a page, in their order."""
    found = re.findall(rf"(?:<!-- ((?:(?!-->).)*) -->\n)?```{kind}\n(.*?)```", text, re.DOTALL)
    return [Block(comment, kind, tuple(line for line in body.splitlines() if line)) for comment, body in found]


def commands_run_by(test: str, page: Path) -> list[str]:
    """The commands of a page that this test says it runs."""
    found = blocks(page.read_text(encoding="utf-8"))
    return [line for block in found if block.is_run_by(test) for line in block.lines]


def strings_of_the_code() -> str:
    """All string literals of the package, the constant parts of f-strings joined where values stand between them."""
    found = []
    for path in (REPOSITORY / "pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)
