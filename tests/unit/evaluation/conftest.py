"""The tiny LLM and its tokenizer."""

from __future__ import annotations

import pytest
import torch

from kappaspeech.model.llm import load_llm, load_tokenizer


@pytest.fixture(scope="module")
def llm(home):
    return load_llm(str(home / "llm"), dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer(home):
    return load_tokenizer(str(home / "llm"))
