"""Perplexity and drift."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.errors import DataError
from pipeline.evaluation import forgetting
from pipeline.evaluation.forgetting import pool_scores, read_texts, relative_change, score_texts
from pipeline.model.llm import load_llm, load_tokenizer


@pytest.fixture(scope="module")
def llm(home):
    return load_llm(str(home / "llm"), dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer(home):
    return load_tokenizer(str(home / "llm"))


def test_a_text_scores_what_transformers_says(llm, tokenizer):
    text = "turn the red lamp on"
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        expected = float(llm(input_ids=ids, labels=ids).loss)
    score = score_texts(llm, tokenizer, [text])
    assert score.num_tokens == ids.shape[1] - 1
    assert score.nats_sum / score.num_tokens == pytest.approx(expected, rel=1e-5)
    assert score.to_json()["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)


def test_scores_add_up_over_texts_in_any_split(llm, tokenizer):
    texts = ["turn the red lamp on", "öffne die Tür", "x"]
    whole = score_texts(llm, tokenizer, texts)
    parts = pool_scores([score_texts(llm, tokenizer, texts[:1]), score_texts(llm, tokenizer, texts[1:])])
    assert parts.num_tokens == whole.num_tokens
    assert parts.nats_sum == pytest.approx(whole.nats_sum, rel=1e-6)


def test_a_long_text_is_read_in_windows(llm, tokenizer, monkeypatch):
    monkeypatch.setattr(forgetting, "WINDOW_TOKENS", 4)
    num_ids = len(tokenizer("turn the red lamp on and on")["input_ids"])
    score = score_texts(llm, tokenizer, ["turn the red lamp on and on"])
    sizes = [min(4, num_ids - start) for start in range(0, num_ids, 4)]
    assert score.num_tokens == sum(size - 1 for size in sizes)


def test_drift_is_a_relative_distance_where_there_is_one():
    assert relative_change(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 3.5]])) == pytest.approx(0.1)
    assert relative_change(torch.zeros(2), torch.ones(2)) is None


def test_a_file_without_text_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    for path in (tmp_path / "empty.txt", tmp_path / "missing.txt"):
        with pytest.raises(DataError, match=path.name):
            read_texts(path)
