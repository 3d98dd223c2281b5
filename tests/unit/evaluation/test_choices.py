"""Likelihoods of choices, and what is counted of them."""

from __future__ import annotations

import math

import pytest
import torch

from kappaspeech.errors import TrainingError
from kappaspeech.evaluation import choice_items
from kappaspeech.evaluation.choice_items import Item, cut_batches, digest_items, make_rows
from kappaspeech.evaluation.choices import Picked, measure_choices, pick, score_batches
from kappaspeech.model.trained import find_base

# of several lengths; one choice begins another; one question is empty
ITEMS = [
    Item("turn the red lamp", ("on", "on and on", "in the green kitchen garden", "off"), 0, "verbs"),
    Item("öffne die", ("Tür", "Lampe"), 0, "nouns"),
    Item("", ("a green door", "a door green", "door"), 1, "nouns"),
]


def score_plainly(llm, tokenizer, items) -> dict[int, float]:
    """One choice after the other, one token after the other, in float32."""
    found = {}
    for item in items:
        for choice in item.choices:
            before = tokenizer(item.question)["input_ids"] or [tokenizer.bos_token_id]
            tokens = tokenizer(f" {choice}" if item.question else choice)["input_ids"]
            nats = 0.0
            for place, token in enumerate(tokens):
                with torch.no_grad():
                    logits_V = llm(input_ids=torch.tensor([[*before, *tokens[:place]]])).logits[0, -1]
                nats += float(logits_V.log_softmax(dim=-1)[token])
            found[len(found)] = nats
    return found


def score(llm, tokenizer):
    return score_batches(llm, cut_batches(make_rows(tokenizer, ITEMS)))


def test_likelihoods_are_those_of_a_plain_loop(llm, tokenizer):
    found = score(llm, tokenizer)
    assert found == pytest.approx(score_plainly(llm, tokenizer, ITEMS), abs=1e-4)
    # a choice that begins another is never less likely than it
    assert found[0] > found[1]


def test_likelihoods_do_not_depend_on_batches(llm, tokenizer, monkeypatch):
    whole = score(llm, tokenizer)
    monkeypatch.setattr(choice_items, "WINDOW_TOKENS", 24)
    batches = cut_batches(make_rows(tokenizer, ITEMS))
    assert len(batches) > 1
    shares = [score_batches(llm, batches[rank::2]) for rank in range(2)]
    assert not shares[0].keys() & shares[1].keys()
    assert {**shares[0], **shares[1]} == pytest.approx(whole, abs=1e-4)


def test_the_base_answers_as_it_did_before_training(llm, tokenizer, trained):
    found, find = score(trained.llm, tokenizer), find_base(trained)
    assert find is not None
    with find():
        base = score(trained.llm, tokenizer)
    assert base == pytest.approx(score_plainly(llm, tokenizer, ITEMS), abs=1e-4)
    assert found == pytest.approx(score_plainly(trained.llm, tokenizer, ITEMS), abs=1e-4)
    assert max(abs(found[choice] - base[choice]) for choice in found) > 0.01


def test_a_long_choice_wins_by_length_and_loses_by_its_sum():
    items = [Item("q", ("ab", "abcdefgh"), 1), Item("q", ("x", "y", "z"), 2)]
    picked = pick(items, {0: -2.0, 1: -4.0, 2: -3.0, 3: -1.0, 4: -1.0})
    # −2/2 against −4/8; of equal ones the first
    assert picked == Picked(plain=(0, 1), normalised=(1, 1))


def test_a_likelihood_that_is_no_number_picks_nothing():
    with pytest.raises(TrainingError, match="NaN"):
        pick([Item("q", ("a", "b"), 0)], {0: -1.0, 1: math.nan})


def test_answers_are_counted_by_hand():
    items = [Item(str(n), ("a", "b") if n < 2 else ("a", "b", "c", "d"), 0, "two" if n < 2 else "four") for n in range(4)]
    base, now = Picked((0, 0, 0, 1), (0, 0, 0, 0)), Picked((0, 1, 0, 2), (1, 1, 1, 0))
    report = measure_choices(items, now, base)
    assert report["accuracy"] == 0.5
    assert report["normalised_accuracy"] == 0.25
    assert report["chance"] == (0.5 + 0.5 + 0.25 + 0.25) / 4
    # the second is lost; the last was wrong, and is wrong in another way
    before = report["base"]
    assert (before["accuracy"], before["normalised_accuracy"], before["difference"]) == (0.75, 1.0, -0.25)
    assert (before["flipped"], before["lost"], before["gained"]) == (0.5, 0.25, 0.0)
    # paired: what was right stays right in no resample less often than it is drawn
    assert before["interval"] == [-0.75, 0.0]
    assert before["normalised_difference"] == -0.75
    assert before["normalised_interval"][0] == -1
    assert {name: (group["num_items"], group["accuracy"]) for name, group in report["groups"].items()} == {
        "two": (2, 0.5),
        "four": (2, 0.5),
    }
    low, high = report["accuracy_interval"]
    assert 0 <= low < 0.5 < high <= 1
    assert (report["picked"], report["right"]) == ([0, 1, 0, 2], [0, 0, 0, 0])
    assert report["items_digest"] == digest_items(items)


def test_without_a_base_or_groups_nothing_is_said_of_them():
    items = [Item("q", ("a", "b"), 0)]
    report = measure_choices(items, Picked((1,), (0,)), None)
    assert (report["base"], report["groups"]) == (None, {})
    assert report["accuracy_interval"] == [0, 0]
