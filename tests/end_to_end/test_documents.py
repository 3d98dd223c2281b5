"""The commands of README and docs, to the letter but for the models' names and sizes, and the examples of docs/python.md."""

from __future__ import annotations

import doctest
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from kappaspeech.commands import main
from tests.conftest import clean_environment
from tests.documents import DOCS, PAGES, REPOSITORY, blocks, commands_run_by
from tests.patience import patience

# what stands for something larger in the documents
SMALL = {
    "meta-llama/Llama-3.1-8B-Instruct": "models/smollm2-135m-instruct",
    "launch/train.sh": str(REPOSITORY / "launch/train.sh"),
    # the small model has 17 matrices
    "100": "4",
}
# commands that want a process of their own: they join ranks, or start them
PROCESSES = ("train", "compare")
# it needs a package index; the models lie there already
FETCHES = "kappaspeech demo models models"
# pages that begin with nothing but models and recordings; the others begin after `select`, or after two trainings
FROM_NOTHING = ("README.md", "tutorial.md", "llama8b.md", "data.md")
AFTER_TRAINING = ("reports.md", "export.md", "transcribing.md")
TESTED = [page for page in PAGES if commands_run_by(__file__, page)]


@pytest.fixture(scope="module")
def trained(train, home, tmp_path_factory) -> dict[str, Path]:
    """Two runs that differ in the tensors that they trained."""
    from kappaspeech.scan.ranking import KappaRanking
    from kappaspeech.selection.rules import Count
    from kappaspeech.selection.select import select

    inverse = tmp_path_factory.mktemp("selections") / "inverse.json"
    select(KappaRanking.read(home / "ranking.json"), Count(4), order="largest").write(inverse)
    return {
        "kappa": train("documents-kappa", arm="smallest κ"),
        "inverse": train("documents-inverse", arm="largest κ", unfreeze__selection=str(inverse)),
    }


@pytest.fixture
def workplace(home, tmp_path) -> Path:
    """A working folder with models and recordings under the documents' names, and the examples' YAML for models of that size."""
    shutil.copytree(home / "llm", tmp_path / "models/smollm2-135m-instruct")
    shutil.copy(home / "whisper.pt", tmp_path / "models/whisper-base.pt")
    for name in ("recordings", "speech"):
        shutil.copytree(home / "speech", tmp_path / name)
    shutil.copy(tmp_path / "speech/test/en/000.flac", tmp_path / "speech/test/en/en-test-00000.flac")
    shutil.copytree(REPOSITORY / "ds_configs", tmp_path / "ds_configs")
    (tmp_path / "launch/configs").mkdir(parents=True)
    for name in ("llama8b", "quickstart"):
        content = yaml.safe_load((REPOSITORY / f"launch/configs/{name}.yaml").read_text(encoding="utf-8"))
        content["model"] |= {"adaptor": {"width": 32, "num_heads": 4}}
        if name == "llama8b":
            content["model"] |= {"llm": "models/smollm2-135m-instruct", "encoder": "models/whisper-base.pt"}
        content["training"] |= {"num_steps": 2, "alignment_steps": 1, "evaluate_every_steps": 0, "checkpoint_every_steps": 0}
        content["batch"] |= {"max_samples": 2, "micro_batches_per_step": 2}
        (tmp_path / f"launch/configs/{name}.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    _make_librispeech(tmp_path, home)
    _make_common_voice(tmp_path, home)
    return tmp_path


def _make_librispeech(folder: Path, home: Path) -> None:
    for split, source in (("train-clean-100", "train"), ("test-clean", "test")):
        chapter = folder / f"LibriSpeech/{split}/84/121"
        chapter.mkdir(parents=True)
        lines = (home / "speech" / source / "en/transcripts.tsv").read_text(encoding="utf-8").splitlines()
        names = [f"84-121-{number:04d}" for number in range(len(lines))]
        for name, line in zip(names, lines, strict=True):
            shutil.copy(home / "speech" / source / "en" / line.split("\t")[0], chapter / f"{name}.flac")
        texts = [line.split("\t")[1].upper() for line in lines]
        (chapter / "84-121.trans.txt").write_text(
            "".join(f"{n} {t}\n" for n, t in zip(names, texts, strict=True)), encoding="utf-8"
        )


def _make_common_voice(folder: Path, home: Path) -> None:
    corpus = folder / "cv-corpus/de"
    (corpus / "clips").mkdir(parents=True)
    rows: dict[str, list[str]] = {"train": [], "test": []}
    for split, found in rows.items():
        for line in (home / "speech" / split / "de/transcripts.tsv").read_text(encoding="utf-8").splitlines():
            file, text = line.split("\t")
            shutil.copy(home / "speech" / split / "de" / file, corpus / f"clips/{split}-{file}")
            found.append(f"{split}-{file}\t{text}\tde\n")
    header = "path\tsentence\tlocale\n"
    for split, found in rows.items():
        (corpus / f"{split}.tsv").write_text(header + "".join(found), encoding="utf-8")
    (corpus / "validated.tsv").write_text(header + "".join(rows["train"] + rows["test"]), encoding="utf-8")


def _prepare(folder: Path, home: Path) -> None:
    """Make what the tutorial has before it trains."""
    shutil.copytree(home / "shards", folder / "shards")
    (folder / "text").mkdir()
    for language in ("en", "de"):
        shutil.copy(home / "text.txt", folder / f"text/{language}.txt")
    for name in ("ranking.json", "selection.json"):
        shutil.copy(home / name, folder / name)


@pytest.mark.slow
@pytest.mark.parametrize("page", TESTED, ids=lambda page: page.name)
def test_the_commands_of_a_page_run_as_written(page, home, nursery, workplace, request, monkeypatch, capsys):
    if page.name not in FROM_NOTHING:
        _prepare(workplace, home)
    if page.name in AFTER_TRAINING:
        for name, run in request.getfixturevalue("trained").items():
            shutil.copytree(run, workplace / "runs" / name)
    for block in blocks(page.read_text(encoding="utf-8"), "yaml"):
        name, _, comment = block.comment.partition(", ")
        if comment == "read by tests/end_to_end/test_documents.py":
            (workplace / name).write_text("\n".join(block.lines).replace("count: 100", "count: 4"), encoding="utf-8")
    scripts = str(Path(sys.executable).parent)
    environment = clean_environment(
        PATH=os.pathsep.join([scripts, os.environ["PATH"]]),
        OMP_NUM_THREADS="1",
        DS_ACCELERATOR="cpu",
        PYTHONPATH=str(REPOSITORY / "pipeline"),
    )
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "pipeline"))
    for command in commands_run_by(__file__, page):
        if command == FETCHES:
            continue
        words = ["bash", "-c", command]
        if command.startswith(("kappaspeech", "deepspeed")):
            words = [SMALL.get(word, word) for word in shlex.split(command)]
        if words[0] == "kappaspeech" and words[1] not in PROCESSES:
            # loading torch for each of a hundred commands would take most of the time
            assert main(words[1:]) == 0, f"{command}\n{capsys.readouterr()}"
            continue
        if words[0] == "kappaspeech" and "--nproc" not in words:
            done = nursery.run(*words[1:])
        else:
            done = subprocess.run(words, cwd=workplace, env=environment, capture_output=True, text=True, timeout=patience(120))
        assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    if page.name == "llama8b.md":
        assert (workplace / "comparison/report.html").exists()
        assert (workplace / "exported/model.safetensors").exists()
    if page.name == "data.md":
        _check_splits(workplace, home)


def _check_splits(folder: Path, home: Path) -> None:
    """No clip of Common Voice's test set is in training, though validated.tsv has all."""
    keys = {}
    for split in ("train", "test"):
        indices = (folder / f"shards/cv-de-{split}").glob("*.index.json")
        keys[split] = {sample[0] for path in indices for sample in json.loads(path.read_text(encoding="utf-8"))["samples"]}
        wanted = len((home / "speech" / split / "de/transcripts.tsv").read_text(encoding="utf-8").splitlines())
        assert len(keys[split]) == wanted
    assert not keys["train"] & keys["test"]


def test_the_pages_of_one_kind_are_there():
    names = {page.name for page in TESTED}
    assert {*FROM_NOTHING, *AFTER_TRAINING, "lora.md", "another_llm.md", "runs.md", "troubleshooting.md"} <= names
    assert len(commands_run_by(__file__, DOCS / "recipes/llama8b.md")) > 8


def test_the_two_commands_are_there():
    (found,) = [
        block for block in blocks((REPOSITORY / "README.md").read_text(encoding="utf-8")) if "quickstart.sh" in str(block.lines)
    ]
    assert len(found.lines) == 2
    for command in found.lines:
        script = shlex.split(command, comments=True)[1]
        done = subprocess.run(["bash", "-n", str(REPOSITORY / script)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_examples_of_the_python_page_give_what_they_show(home, trained, tmp_path, monkeypatch):
    shutil.copytree(home / "llm", tmp_path / "llm")
    shutil.copytree(home / "speech", tmp_path / "speech")
    shutil.copytree(trained["kappa"], tmp_path / "runs/kappa")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    done = doctest.testfile(str(DOCS / "python.md"), module_relative=False, globs=names, encoding="utf-8")
    assert done.attempted > 20
    assert done.failed == 0, "what differs is in the captured output"
