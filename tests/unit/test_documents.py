"""README and docs: links lead somewhere, generated pages are the code's, commands are run by a test, and the site builds."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.documents import DOCS, PAGES, REPOSITORY, blocks, strings_of_the_code
from tests.patience import patience

MARKDOWN_PATHS = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))


LINK = r"\]\(([^)\s]+)\)"
PATH = r"(?<![\w/.-])(?:launch|ds_configs|docs|tests|benchmarks)/[\w./-]+\w"


def commands(text: str) -> list[str]:
    """This project's commands in a page, in blocks and between backticks."""
    return ["".join(found) for found in re.findall(r"`(kappaspeech [^`]+)`|^(kappaspeech .*)$", text, re.MULTILINE)]


def options(command: str) -> list[str]:
    return re.findall(r"(?<![\w-])--[a-z][a-z-]+", re.sub(r"'[^']*'", "", command))


def load_generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchor(title: str) -> str:
    """A heading's anchor, as mkdocs and GitHub make it."""
    plain = re.sub(r"[^\w\s-]", "", re.sub(r"[^\x00-\x7f]", "", title)).strip().lower()
    return re.sub(r"[-\s]+", "-", plain)


@pytest.mark.parametrize("name", ["configuration", "cli"])
def test_generated_pages_are_what_the_code_says(name):
    made = getattr(load_generator(), f"make_{name}")()
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert page == made, "run python docs/generate.py"


def test_pages_have_what_the_tests_of_each_page_look_for():
    """A page may have no link, path, block or option; if none has, what looks for them has gone blind."""
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    for pattern in (LINK, PATH):
        assert sum(len(re.findall(pattern, text)) for text in texts) > 20, pattern
    assert sum(len(blocks(text)) for text in texts) > 20
    assert sum(len(options(command)) for text in texts for command in commands(text)) > 20


@pytest.mark.parametrize(
    "page",
    [*PAGES, *(REPOSITORY / f"{name}.md" for name in ("CONTRIBUTING", "SECURITY", "CHANGELOG"))],
    ids=lambda page: str(page.relative_to(REPOSITORY)),
)
def test_every_link_leads_to_a_page_and_a_heading(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(LINK, text):
        if target.startswith(("https:", "http:")):
            continue
        file, _, heading = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{target} isn't there"
        if heading:
            titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in map(anchor, titles), f"{target}: there are {', '.join(map(anchor, titles))}"


@MARKDOWN_PATHS
def test_every_path_that_a_page_names_is_there(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(PATH, text):
        if not path.startswith("launch/START"):
            assert (REPOSITORY / path).exists(), path


@MARKDOWN_PATHS
def test_every_block_of_commands_is_run_or_says_why_not(page):
    for block in blocks(page.read_text(encoding="utf-8")):
        kind, _, what = block.comment.partition(" ")
        assert kind in ("run", "not"), f"{block.lines[0]} stands without a word on who runs it"
        if kind == "run":
            assert (REPOSITORY / what.removeprefix("by ")).exists(), what
        else:
            assert len(what) > len("run: "), block.lines[0]


def test_a_test_that_is_said_to_run_a_block_knows_its_commands():
    """Either it takes the lines from the page, or it starts the same script by name."""
    said = [
        (page, block, block.comment.removeprefix("run by "))
        for page in PAGES
        for block in blocks(page.read_text(encoding="utf-8"))
        if block.comment.startswith("run by ")
    ]
    assert len(said) > 20
    for page, block, runner in said:
        path = REPOSITORY / runner
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        source = "\n".join(file.read_text(encoding="utf-8") for file in files)
        if "commands_run_by(__file__" in source:
            assert block.is_run_by(str(path)), f"{page.name}: {block.comment}"
            continue
        for line in block.lines:
            script = next((Path(word).name for word in line.split() if re.search(r"\w\.(?:sh|sbatch|py)$", word)), None)
            assert script, f"{page.name}: {runner} takes no lines of the page, and {line} names no script"
            # `launch/test.sh` is what runs the tests
            assert script in source or script == "test.sh", f"{runner} doesn't know {line}"


@MARKDOWN_PATHS
def test_every_option_that_a_page_names_exists(page):
    """Of this project's commands, in blocks of commands and between backticks."""
    reference = (DOCS / "cli.md").read_text(encoding="utf-8")
    known = set(re.findall(r"--[a-z][a-z-]+", reference))
    # `demo models` counts as demo
    subcommands = {*re.findall(r"^## kappaspeech (\w+)", reference, re.MULTILINE), "COMMAND"}
    text = page.read_text(encoding="utf-8")
    written = {line for block in blocks(text) for line in block.lines} | set(re.findall(r"`([^`]+)`", text))
    for command in commands(text):
        first = command.split()[1]
        # a sentence may begin with the project's name
        assert first in subcommands or first.startswith("-") or command not in written, command
        for option in options(command):
            assert option in known | {"--help", "--version", "--install-completion"}, command


def test_every_message_of_the_troubleshooting_page_is_the_codes():
    scripts = "\n".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "launch").glob("*.sh"))
    code = strings_of_the_code() + scripts
    rows = [line for line in (DOCS / "troubleshooting.md").read_text(encoding="utf-8").splitlines() if line.startswith('| "')]
    assert len(rows) > 10
    for row in rows:
        for message in re.findall(r'"(.*?)"', row.split("|")[1]):
            for part in filter(None, (part.strip() for part in message.split("…"))):
                assert part in code, f"the code doesn't say {part!r}"


def test_the_example_leaves_no_held_out_sentence_in_common_voices_training_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    corpus = Path("cv-corpus/de")
    corpus.mkdir(parents=True)
    rows = {
        "train": ['"Guten Tag!', "Nur im Training", "der zug fährt"],
        "test": ["guten Tag"],
        "dev": ["Der Zug fährt."],
    }
    for name, sentences in rows.items():
        lines = ["path\tsentence\tlocale", *(f"{number}.mp3\t{sentence}\tde" for number, sentence in enumerate(sentences))]
        (corpus / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "data.md").read_text("utf-8"), re.DOTALL)
    exec(compile(block, "data.md", "exec"), {})
    written = (corpus / "train-unseen.tsv").read_text(encoding="utf-8").splitlines()
    assert written == ["path\tsentence\tlocale", "1.mp3\tNur im Training\tde"]


def test_every_preset_of_deepspeed_is_explained():
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    presets = [path.name for path in (REPOSITORY / "ds_configs").glob("*.json")]
    assert "zero3.json" in presets
    assert [name for name in presets if f"`ds_configs/{name}`" not in page] == []


def test_every_page_is_in_the_navigation():
    nav = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = [path for item in nav for entry in item.values() for path in (entry_paths(entry))]
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES if page.is_relative_to(DOCS))


def entry_paths(entry: Any) -> list[str]:
    return [entry] if isinstance(entry, str) else [path for item in entry for path in item.values()]


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("material", reason="pip install --editable '.[docs]'; launch/test.sh does")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=patience(120))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/configuration/index.html").exists()
    pages = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("*.html"))
    # styles, scripts and fonts are the site's own
    assert re.findall(r"""<(?:script|link)[^>]+(?:src|href)=["']https?://(?!example\.org)[^"']+""", pages) == []


def test_the_readme_can_be_read_in_five_minutes():
    text = re.sub(r"```.*?```|<!--.*?-->", "", (REPOSITORY / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(text.split()) < 800


def test_the_metadata_name_licence_and_author():
    setup = (REPOSITORY / "setup.py").read_text(encoding="utf-8")
    assert 'license="Apache-2.0"' in setup
    assert (REPOSITORY / "LICENSE").read_text(encoding="utf-8").split()[:4] == ["Apache", "License", "Version", "2.0,"]
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["license"] == "Apache-2.0"
    assert re.search(rf'version="{re.escape(str(citation["version"]))}"', setup)
    author = re.search(r'author="(.*)"', setup)
    assert author is not None
    assert citation["authors"] == [{"name": author[1]}]


def test_the_code_has_the_version_of_the_metadata():
    from kappaspeech import __version__

    assert f'version="{__version__}"' in Path(REPOSITORY / "setup.py").read_text(encoding="utf-8")
