"""Code that comes with a model's files: it is never run, and nobody is asked whether it may."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kappaspeech.errors import CheckpointError
from kappaspeech.model.family import read_config
from kappaspeech.model.llm import load_llm, load_tokenizer
from kappaspeech.model.meta_llm import build_meta_llm

CODE = """
from pathlib import Path

from transformers import PreTrainedConfig

Path(__file__).with_name("has-run").touch()
Path(r"{marker}").touch()


class OwnConfig(PreTrainedConfig):
    model_type = "own"
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model of a family that transformers lacks, as the hub holds many."""
    path = tmp_path / "own"
    path.mkdir()
    names = {"AutoConfig": "code.OwnConfig", "AutoModelForCausalLM": "code.OwnLlm", "AutoTokenizer": [None, "code.OwnTokenizer"]}
    (path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": names}))
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "OwnTokenizer", "auto_map": names}))
    (path / "code.py").write_text(CODE.format(marker=tmp_path / "has-run"))
    return path


@pytest.mark.parametrize(
    "load",
    [read_config, load_tokenizer, build_meta_llm, lambda path: load_llm(path, dtype=torch.float32)],
    ids=["config", "tokenizer", "meta", "llm"],
)
def test_code_that_comes_with_a_model_is_refused_by_name_and_nobody_is_asked(folder, load, monkeypatch):
    asked = []

    def answer(question: str) -> str:
        asked.append(question)
        return "y"

    monkeypatch.setattr("builtins.input", answer)
    with pytest.raises(CheckpointError) as caught:
        load(str(folder))
    assert str(caught.value).startswith(f"{folder} is loaded by Python files of its own (auto_map), which are never run here")
    assert asked == []
    assert not (folder.parent / "has-run").exists()
