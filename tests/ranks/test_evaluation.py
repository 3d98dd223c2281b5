"""The same transcripts and the same forgetting on any number of ranks, by replicas and under ZeRO-3."""

from __future__ import annotations

import json

import pytest
import torch

from kappaspeech.model.llm import load_llm, load_tokenizer
from tests.patience import patience
from tests.ranks.evaluation_rank import CASES

# float32 sums in another order; the weights of two ranks differ by as much after training
SCORE_TOLERANCE = 1e-4

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def loud_home(home, tmp_path_factory):
    """The tiny models with larger weights: as they are, they say the same whatever they hear. And a text for one rank alone."""
    folder = tmp_path_factory.mktemp("loud")
    for name in ("shards", "whisper.pt", "text.txt", "selection.json"):
        (folder / name).symlink_to(home / name)
    (folder / "one.txt").write_text("schalte die rote Lampe ein\n", encoding="utf-8")
    # batches whose number no number of ranks divides
    tasks = [
        {"question": f"turn the {'red ' * (1 + 8 * number)}lamp", "choices": ["on", "on and on", "off"], "answer": number % 3}
        for number in range(24)
    ]
    tasks += [
        {"instruction": f"schalte die {'rote ' * number}Lampe ein", "checks": [{"kind": "words", "most": 12 + number}]}
        for number in range(5)
    ]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(item) + "\n" for item in tasks))
    llm = load_llm(str(home / "llm"), dtype=torch.float32)
    with torch.no_grad():
        for parameter in llm.parameters():
            parameter.data = 3 * parameter
    llm.save_pretrained(folder / "llm")
    load_tokenizer(str(home / "llm")).save_pretrained(folder / "llm")
    return folder


@pytest.fixture(scope="module")
def results(loud_home, nursery, tmp_path_factory):
    """By the number of ranks, what each way of decoding gave."""
    found = {}
    for ranks in (1, 2, 3):
        output = tmp_path_factory.mktemp(f"ranks{ranks}") / "results.json"
        done = nursery.run(loud_home, output, module="tests.ranks.evaluation_rank", ranks=ranks, timeout=patience(240))
        assert done.returncode == 0, done.stderr[-3000:]
        found[ranks] = json.loads(output.read_text())
    return found


@pytest.mark.parametrize("case", CASES)
def test_hypotheses_are_the_same_on_one_two_and_three_ranks_whole_and_partitioned(results, case):
    expected = results[1]["replica"][str(case)]
    assert len(expected) == case[0]
    for ranks, by_decoding in results.items():
        for decoding in ("replica", "zero3"):
            assert by_decoding[decoding][str(case)] == expected, (ranks, decoding)


def test_hypotheses_are_the_same_for_every_size_of_batch(results):
    by_key = {item["key"]: item for item in results[2]["zero3"][str((6, 6))]}
    assert len({item["hypothesis"] for item in by_key.values()}) > 3, "texts that are all alike would prove nothing"
    for case in CASES:
        assert all(by_key[item["key"]] == item for item in results[2]["zero3"][str(case)])


def test_forgetting_is_the_same_on_any_number_of_ranks_whole_and_partitioned(results):
    expected = results[1]["replica"]["texts"]
    assert all(text["kl_nats"] > 1e-3 for text in expected.values()), "a model that hasn't moved would prove nothing"
    for by_decoding in results.values():
        for decoding in ("replica", "zero3"):
            for language, text in expected.items():
                assert by_decoding[decoding]["texts"][language] == pytest.approx(text, rel=SCORE_TOLERANCE)


def test_answers_are_the_same_on_any_number_of_ranks_whole_and_partitioned(results):
    expected = results[1]["replica"]
    report, (found, of_base) = expected["tasks"]["en"], expected["likelihoods"]
    assert report["num_items"] == 24
    assert [choice for choice, _ in found] == list(range(72))
    assert max(abs(nats - before) for (_, nats), (_, before) in zip(found, of_base, strict=True)) > 0.1
    for by_decoding in results.values():
        for decoding in ("replica", "zero3"):
            for ours, theirs in zip(by_decoding[decoding]["likelihoods"], expected["likelihoods"], strict=True):
                assert dict(ours) == pytest.approx(dict(theirs), rel=SCORE_TOLERANCE, abs=1e-3)
            assert by_decoding[decoding]["tasks"]["en"] == report


def test_instructions_are_answered_alike_on_any_number_of_ranks_whole_and_partitioned(results):
    expected = results[1]["replica"]["instructions"]["en"]
    assert (expected["num_items"], len(set(expected["answers"])) > 1) == (5, True)
    assert expected["base"] is not None
    for by_decoding in results.values():
        for decoding in ("replica", "zero3"):
            assert by_decoding[decoding]["instructions"]["en"] == expected


def test_a_model_that_was_not_trained_yet_is_at_no_distance_from_its_base(results):
    for by_decoding in results.values():
        assert [text["kl_nats"] for text in by_decoding["before"].values()] == [0, 0]


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_evaluating_under_zero3_every_few_minutes_leaves_the_training_as_it_was(train, two_ranks):
    run = train("zero3-decoding", ranks=2, evaluation__decode="zero3", training__evaluate_every_minutes=1e-6)
    assert [record["step"] for record in read(run / "evaluations.jsonl")] == [0, 1, 2, 3, 4]
    losses = [[record["loss_nats"] for record in read(folder / "steps.jsonl")] for folder in (run, two_ranks)]
    assert losses[0] == losses[1]
    ours, theirs = (read(folder / "evaluations.jsonl")[-1] for folder in (run, two_ranks))
    # bfloat16 rounds the same sums alike here and there: one model, partitioned or not
    assert ours["text"]["en"] == pytest.approx(theirs["text"]["en"], rel=1e-2)
    assert ours["text"]["en"]["kl_nats"] > 0
    assert read(run / "evaluations.jsonl")[0]["text"]["en"]["kl_nats"] == 0
    hypotheses = [read(folder / "hypotheses/step-000004.jsonl") for folder in (run, two_ranks)]
    assert hypotheses[0] == hypotheses[1]
