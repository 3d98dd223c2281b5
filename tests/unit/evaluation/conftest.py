"""The tiny LLM, its tokenizer, and a trained one."""

from __future__ import annotations

import pytest
import torch

from kappaspeech.model.adaptor import AdaptorShape
from kappaspeech.model.llm import load_llm, load_tokenizer
from kappaspeech.model.trained import load_trained_model
from tests import tiny


@pytest.fixture(scope="module")
def llm(home):
    return load_llm(str(home / "llm"), dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer(home):
    return load_tokenizer(str(home / "llm"))


@pytest.fixture(scope="session")
def adaptor_shape():
    return AdaptorShape(tiny.ENCODER_WIDTH, 32, 32, 4, 4, 0.0, 1.0)


@pytest.fixture(scope="module")
def trained(home, adaptor_shape):
    """The base with two of its tensors changed."""
    base = dict(load_llm(str(home / "llm"), dtype=torch.float32).named_parameters())
    names = ["model.layers.0.mlp.up_proj.weight", "model.norm.weight"]
    changes = {f"llm.{name}": base[name].detach() + 0.3 * torch.randn_like(base[name]) for name in names}
    return load_trained_model(str(home / "llm"), adaptor_shape, changes, dtype=torch.float32)
