"""Runs side by side, and the refusal to compare what isn't comparable."""

from __future__ import annotations

import json
import shutil

import pytest

from kappaspeech.commands import main


@pytest.fixture(scope="module")
def inverse(home, train, tmp_path_factory):
    """The control: the tensors of largest κ, trained like `one_rank`."""
    selection = tmp_path_factory.mktemp("inverse") / "selection.json"
    words = ["select", home / "ranking.json", "--match-budget", home / "selection.json", "--largest", "--output", selection]
    assert main([str(word) for word in words]) == 0
    return train("inverse", arm="largest", unfreeze__selection=str(selection))


@pytest.fixture(scope="module")
def report(one_rank, inverse, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    assert main(["compare", str(one_rank), str(inverse), "--output", str(folder)]) == 0
    return folder


def test_the_report_holds_what_the_runs_recorded(report, one_rank, inverse):
    content = json.loads((report / "report.json").read_text())
    assert [arm["arm"] for arm in content["arms"]] == ["run", "largest"]
    for arm, run in zip(content["arms"], (one_rank, inverse), strict=True):
        last = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
        assert arm["wer"]["mean"]["mean"] == pytest.approx(last["wer"]["mean_wer"])
        assert arm["text"]["en"]["perplexity"]["mean"] == last["text"]["en"]["perplexity"]
        selection = json.loads((run / "selection.json").read_text())
        assert arm["num_tensors"]["mean"] == len(selection["tensors"])
        assert arm["num_llm_trained_parameters"]["mean"] == selection["num_parameters"]
        drift = json.loads((run / "drift.json").read_text())["relative_frobenius"]
        assert arm["mean_drift"]["mean"] == pytest.approx(sum(drift.values()) / len(drift))
    assert content["arms"][0]["difference"] is None
    assert set(content["arms"][1]["difference"]["languages"]) == {"en", "de"}
    (proof,) = content["proof"]
    steps = [json.loads(line) for line in (one_rank / "steps.jsonl").read_text().splitlines()]
    assert (proof["num_runs"], proof["num_steps"]) == (2, len(steps))
    # nothing has been trained at the first step, so arms that start alike have the same loss, bit for bit
    assert proof["first_loss_spread"] == 0


def test_both_arms_saw_the_same_samples(one_rank, inverse):
    digests = [
        [json.loads(line)["keys_digest"] for line in (run / "steps.jsonl").read_text().splitlines()]
        for run in (one_rank, inverse)
    ]
    assert digests[0] == digests[1]


def test_runs_that_saw_other_samples_are_refused(one_rank, inverse, tmp_path, capsys):
    other = shutil.copytree(inverse, tmp_path / "other")
    records = [json.loads(line) for line in (other / "steps.jsonl").read_text().splitlines()]
    records[2]["keys_digest"] = "0" * 64
    (other / "steps.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert main(["compare", str(one_rank), str(other), "--output", str(tmp_path / "report")]) == 2
    assert "the samples of step 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "change", "complaint"),
    [
        ("config.json", {"seed": 18}, "no seed in common"),
        ("config.json", {"batch": {"max_samples": 2}}, "batch.max_samples"),
        ("run.json", {"data_fingerprint": "0" * 64}, "data_fingerprint"),
        ("run.json", {"initial_weights_digest": "0" * 64}, "initial_weights_digest"),
        ("run.json", {"versions": {"torch": "1.0"}}, "versions"),
        ("run.json", {"arm": "run"}, "both called 'run' and have seed 17"),
        ("run.json", {"status": "resumable"}, "hasn't finished"),
    ],
)
def test_what_differs_in_more_than_the_arm_is_refused(one_rank, inverse, tmp_path, capsys, file, change, complaint):
    other = shutil.copytree(inverse, tmp_path / "other")
    content = json.loads((other / file).read_text())
    (other / file).write_text(json.dumps({**content, **change}))
    assert main(["compare", str(one_rank), str(other), "--output", str(tmp_path / "report")]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "report").exists()
