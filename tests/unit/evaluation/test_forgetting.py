"""Perplexity and drift."""

from __future__ import annotations

import math

import pytest
import torch

from kappaspeech.errors import DataError, TrainingError
from kappaspeech.evaluation import forgetting
from kappaspeech.evaluation.forgetting import (
    TextScore,
    count_bytes,
    cut_windows,
    pool_scores,
    read_texts,
    relative_change,
    score_windows,
)
from kappaspeech.model.trained import find_base, load_trained_model

TEXTS = ["turn the red lamp on", "öffne die Tür", "x", "a green door and a kitchen garden"]


def score_texts(llm, tokenizer, texts, *, base=None) -> TextScore:
    """All at once on one rank, as every number of ranks must score them."""
    windows = cut_windows(tokenizer, texts)
    nats_sum, kl_nats_sum = score_windows(llm, windows, count=len(windows), base=base)
    return TextScore(nats_sum, sum(map(len, windows)) - len(windows), count_bytes(texts), kl_nats_sum)


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


def test_the_distance_to_the_base_is_that_between_two_models(llm, tokenizer, trained):
    score = score_texts(trained.llm, tokenizer, TEXTS, base=find_base(trained))
    expected = 0.0
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            before, after = (model(input_ids=ids).logits[0, :-1].log_softmax(dim=-1) for model in (llm, trained.llm))
        expected += float(torch.nn.functional.kl_div(after, before, reduction="sum", log_target=True))
    assert score.kl_nats_sum == pytest.approx(expected, rel=1e-4)
    assert score.to_json()["kl_nats"] == pytest.approx(expected / score.num_tokens, rel=1e-4)
    assert score.nats_sum == pytest.approx(score_texts(trained.llm, tokenizer, TEXTS).nats_sum, rel=1e-6)


def test_the_trained_tensors_are_back_after_the_base_has_spoken(tokenizer, trained):
    before = {name: parameter.detach().clone() for name, parameter in trained.llm.named_parameters()}
    score = score_texts(trained.llm, tokenizer, TEXTS, base=find_base(trained))
    # the base has spoken, and it is another model
    assert score.kl_nats_sum > 0
    after = dict(trained.llm.named_parameters())
    assert after.keys() == before.keys()
    assert [name for name, parameter in after.items() if not torch.equal(parameter, before[name])] == []


def test_the_distance_does_not_depend_on_how_many_logits_are_held(tokenizer, trained, monkeypatch):
    whole = score_texts(trained.llm, tokenizer, TEXTS, base=find_base(trained))
    monkeypatch.setattr(forgetting, "_HELD_LOGITS_BYTES", 1)
    assert score_texts(trained.llm, tokenizer, TEXTS, base=find_base(trained)) == whole


def test_a_model_of_which_only_the_adaptor_was_trained_is_at_no_distance(home, tokenizer, adaptor_shape):
    adaptor = {"adaptor.to_llm.bias": torch.ones(32)}
    model = load_trained_model(str(home / "llm"), adaptor_shape, adaptor, dtype=torch.float32)
    assert score_texts(model.llm, tokenizer, TEXTS, base=find_base(model)).kl_nats_sum == 0


def test_the_distance_is_unknown_where_the_base_is(llm, tokenizer):
    score = score_texts(llm, tokenizer, TEXTS)
    assert score.to_json()["kl_nats"] is None
    assert pool_scores([score, TextScore(1.0, 1, 1, 0.5)]).kl_nats_sum is None
    assert pool_scores([TextScore(2.0, 1, 1, 0.25), TextScore(1.0, 1, 1, 0.5)]).kl_nats_sum == 0.75


def test_a_folder_is_read_as_one_text_a_file(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "b.txt").write_text("Zweiter Text\nauf zwei Zeilen\n", encoding="utf-8")
    (tmp_path / "inner/a.txt").write_text("first\n", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "._b.txt").write_bytes(b"\0\5\x16\7\xff")
    (tmp_path / "notes.md").write_text("no text")
    assert sorted(read_texts(tmp_path)) == ["Zweiter Text\nauf zwei Zeilen", "first"]


def test_a_line_ends_at_a_line_feed_alone_and_no_encoding_is_guessed(tmp_path):
    (tmp_path / "t.txt").write_bytes("\ufeffone\u2028text\x85still\r\nanother\r\n".encode())
    assert read_texts(tmp_path / "t.txt") == ["one\u2028text\x85still", "another"]
    (tmp_path / "t.txt").write_bytes("a\nGrüße\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"t\.txt, line 2: byte 0xfc"):
        read_texts(tmp_path / "t.txt")


def test_text_too_short_to_predict_anything_is_refused(llm, tokenizer):
    with pytest.raises(DataError, match="two tokens"):
        score_texts(llm, tokenizer, ["x"]).to_json()


def test_a_perplexity_beyond_all_floats_is_the_largest_one():
    found = TextScore(nats_sum=8_000.0, num_tokens=10, num_bytes=40).to_json()["perplexity"]
    assert 1e308 < found < math.inf


@pytest.mark.parametrize("score", [TextScore(math.nan, 3, 9), TextScore(math.inf, 3, 9), TextScore(1.0, 3, 9, math.nan)])
def test_a_loss_that_is_no_number_ends_in_a_sentence(score):
    with pytest.raises(TrainingError, match=r"(nan|inf)\b.* earlier checkpoint"):
        score.to_json()


def test_a_file_without_text_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "empty.txt", tmp_path / "missing.txt", tmp_path / "folder"):
        with pytest.raises(DataError, match=path.name):
            read_texts(path)
