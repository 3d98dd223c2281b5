"""Missing packages, noticed before any work is done, by every command and option that needs one."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from kappaspeech.commands import main
from kappaspeech.errors import DataError, InputError
from kappaspeech.needed_packages import PACKAGES, need
from tests import tiny
from tests.documents import REPOSITORY

PIP = {module: f"pip install '{package}'." for module, package in PACKAGES.items()}


def of_setup(name: str) -> Any:
    """The value of a constant of setup.py."""
    for node in ast.parse((REPOSITORY / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise AssertionError(name)


def test_every_package_is_one_that_setup_asks_for():
    required = {re.split(r"[<>=\[]", item)[0] for item in of_setup("REQUIREMENTS")}
    extras = {f"kappaspeech[{extra}]" for extra in of_setup("EXTRAS")}
    assert set(PACKAGES.values()) <= required | extras
    # what is asked for nowhere else is an extra's
    for extra in ("http", "s3", "gs", "datasets", "parquet", "kaldialign", "lm-eval", "demo"):
        assert f"kappaspeech[{extra}]" in PACKAGES.values()


def test_the_sentence_names_purpose_packages_and_remedy(monkeypatch):
    need("--picture", "json", "ast")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"^--picture needs matplotlib, which isn't installed: pip install 'matplotlib'\.$"):
        need("--picture", "matplotlib", "json")
    text = r"^It needs matplotlib and pyarrow, which aren't installed: pip install 'matplotlib' 'kappaspeech\[parquet\]'\.$"
    with pytest.raises(DataError, match=text):
        need("It", "matplotlib", "pyarrow", kind=DataError)


@pytest.fixture
def places(home, tmp_path) -> dict[str, Path]:
    """Inputs of commands: names of those that are there, and folders for what a command would write."""
    (tmp_path / "x.gguf").write_bytes(b"")
    (tmp_path / "dataset").mkdir()
    for name in ("dataset_info.json", "state.json"):
        (tmp_path / "dataset" / name).write_text("{}")
    tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "out")
    arms = [{"name": name, "select": name} for name in ("smallest", "lora")]
    experiment = {"base": "run.yaml", "output": str(tmp_path / "out"), "arms": arms, "count": 1}
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    return {"home": home, "tmp": tmp_path, "out": tmp_path / "out"}


@pytest.mark.parametrize(
    ("words", "module", "purpose"),
    [
        ("show {home}/ranking.json --parquet {out}", "pyarrow", "--parquet"),
        ("show {home}/ranking.json --picture {out}.png", "matplotlib", "--picture"),
        ("scan {home}/llm --backend mpi --output {out}", "mpi4py", "--backend mpi"),
        ("scan {tmp}/x.gguf --output {out}", "gguf", "x.gguf, a GGUF file,"),
        ("pack {home}/speech/train {out}", "webdataset", "kappaspeech pack"),
        ("pack {tmp}/dataset {out} --language en", "datasets", "a Hugging Face dataset,"),
        ("index {home}/shards/test/*.tar --output {out}.index", "soundfile", "kappaspeech index"),
        ("index s3://bucket/x.tar --output {out}.index", "s3fs", "Reading s3://"),
        ("index gs://bucket/x.tar --output {out}.index", "gcsfs", "Reading gs://"),
        ("scan {home}/llm --activations {tmp}/x.txt --output {out}", "transformers", "--activations"),
        ("export {home}/llm {out} --whole", "jinja2", "--whole"),
        ("export {home}/llm {out}", "transformers", "kappaspeech export"),
        ("push {home}/llm me/x", "transformers", "kappaspeech push"),
        ("demo replay {home}/llm {out}", "transformers", "kappaspeech demo replay"),
        ("demo speech {out}", "espeakng_loader", "kappaspeech demo speech"),
        ("train {tmp}/run.yaml", "tensorboard", "kappaspeech train"),
        ("train {tmp}/run.yaml", "jiwer", "data.test"),
        ("train {tmp}/run.yaml --set unfreeze.mode=lora", "peft", "unfreeze.mode lora"),
        ("train {tmp}/run.yaml --set data.train.0.shards=https://host/x.tar", "aiohttp", "Reading https://"),
        ("evaluate {home}/llm", "jiwer", "kappaspeech evaluate"),
        ("evaluate {home}/llm", "jinja2", "--page"),
        ("evaluate {home}/llm --no-page --compounds", "kaldialign", "--compounds"),
        ("evaluate {home}/llm --data https://host/x.tar", "aiohttp", "Reading https://"),
        ("transcribe {home}/llm {home}/speech/test/en --output {out}", "soundfile", "kappaspeech transcribe"),
        ("compare {home} --output {out}", "matplotlib", "kappaspeech compare"),
        ("compare {tmp}/experiment.yaml", "tensorboard", "kappaspeech train"),
        ("compare {tmp}/experiment.yaml", "peft", "An arm of LoRA"),
    ],
)
def test_a_missing_package_is_noticed_before_anything_is_written(places, monkeypatch, capsys, words, module, purpose):
    monkeypatch.setitem(sys.modules, module, None)
    before = sorted(places["tmp"].rglob("*"))
    assert main([word.format(**places) for word in words.split(" ")]) == 2
    error = capsys.readouterr().err
    assert f"{purpose} needs {module}, which isn't installed: {PIP[module]}" in error
    written = [path for path in sorted(places["tmp"].rglob("*")) if path not in before and path.is_file()]
    assert written == []
