"""Runs side by side, and the refusal to compare what isn't comparable."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from pipeline.commands import main


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
    arms = json.loads((report / "report.json").read_text())["arms"]
    assert [arm["arm"] for arm in arms] == ["run", "largest"]
    for arm, run in zip(arms, (one_rank, inverse), strict=True):
        last = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
        assert arm["mean_wer"] == last["wer"]["mean_wer"]
        assert arm["text"] == last["text"]
        selection = json.loads((run / "selection.json").read_text())
        assert arm["num_selected"] == len(selection["tensors"])
        assert arm["num_llm_trained_parameters"] == selection["num_parameters"]
        drift = json.loads((run / "drift.json").read_text())["relative_frobenius"]
        assert arm["mean_drift"] == pytest.approx(sum(drift.values()) / len(drift))
    assert arms[0]["difference"] == {}
    assert set(arms[1]["difference"]) == {"en", "de"}


def test_the_page_and_the_plots_are_whole(report):
    page = (report / "report.html").read_text()
    assert page.count("<svg") == page.count("</svg>") == 1
    assert not re.search(r"https?://(?!www\.w3\.org|purl\.org|creativecommons\.org|matplotlib\.org)", page)
    assert (report / "report.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_runs_give_the_same_bytes(report, one_rank, inverse, tmp_path):
    assert main(["compare", str(one_rank), str(inverse), "--output", str(tmp_path)]) == 0
    for path in report.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_both_arms_saw_the_same_samples(one_rank, inverse):
    digests = [
        [json.loads(line)["keys_digest"] for line in (run / "steps.jsonl").read_text().splitlines()]
        for run in (one_rank, inverse)
    ]
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("file", "change", "complaint"),
    [
        ("config.json", {"seed": 18}, "seed"),
        ("run.json", {"data_fingerprint": "0" * 64}, "data_fingerprint"),
        ("run.json", {"arm": "run"}, "Two runs are called 'run'"),
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
