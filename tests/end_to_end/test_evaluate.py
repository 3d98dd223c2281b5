"""`kappaspeech evaluate` on a run, its export and plain Whisper, as a user calls it."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from kappaspeech.commands import main

pytestmark = pytest.mark.slow

# the same questions as a task of the harness's own, which takes its choices after a space, or after nothing
HARNESS_TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {questions}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: "{delimiter}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""

ASKED = json.dumps({"question": "turn the red lamp", "choices": ["on", "off", "on and on"], "answer": 0}) + "\n"


@pytest.fixture(scope="module")
def export(one_rank, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "export"
    assert main(["export", str(one_rank), str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def of_run(one_rank, tmp_path_factory):
    """The record of a run's own test set, and its path."""
    path = tmp_path_factory.mktemp("of-run") / "run.json"
    assert main(["evaluate", str(one_rank), "--normalisers", "--compounds", "--output", str(path)]) == 0
    return json.loads(path.read_text()), path


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def hypotheses(path) -> list[dict]:
    return [json.loads(line) for line in path.with_suffix(".hypotheses.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_runs_record_names_its_normalisers_and_how_texts_ended(of_run):
    record, path = of_run
    assert {language: part["normaliser"] for language, part in record["wer"]["languages"].items()} == {
        "de": "whisper-basic",
        "en": "whisper-english",
    }
    assert set(record["normalisers"]) == {"chosen", "basic", "none"}
    assert record["normalisers"]["chosen"]["mean_wer"] == record["wer"]["mean_wer"]
    assert record["real_time_factor"] == record["decode_seconds"] / record["audio_seconds"] > 0
    assert record["compounds"]["aligner"] == "kaldialign, compounds merged"
    assert set(record["compounds"]) == set(record["wer"])
    endings = [item["ending"] for item in hypotheses(path)]
    assert record["num_utterances"] == len(endings) == 6
    assert (record["num_loops"], record["num_cut"]) == (endings.count("loop"), endings.count("length"))
    assert record["text"]["en"]["kl_nats"] > 0
    assert path.with_suffix(".html").read_text().count("<audio") == 6


def test_questions_are_asked_of_a_run_and_of_its_base(one_rank, tmp_path, capsys):
    (tmp_path / "questions.jsonl").write_text(3 * ASKED)
    words = ["--tasks", f"en={tmp_path / 'questions.jsonl'}", "--max-utterances", "2", "--output", str(tmp_path / "x.json")]
    assert main(["evaluate", str(one_rank), *words]) == 0
    report = json.loads((tmp_path / "x.json").read_text())["tasks"]["en"]
    assert (report["num_items"], report["right"]) == (3, [0, 0, 0])
    assert len(set(report["picked"])) == 1
    assert report["base"]["flipped"] in (0, 1)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("tasks en ")]
    assert f"<p>{line}</p>" in (tmp_path / "x.html").read_text()


def test_an_export_writes_what_its_run_wrote_and_knows_no_base(of_run, export, home, tmp_path, capsys):
    path = tmp_path / "export.json"
    words = ["--data", str(home / "shards/test/*.tar"), "--text", f"en={home / 'text.txt'}", "--no-page"]
    words += ["--batch-size", "4", "--max-new-tokens", "8", "--against", str(of_run[1].with_suffix(".hypotheses.jsonl"))]
    assert main(["evaluate", str(export), *words, "--output", str(path)]) == 0
    assert hypotheses(path) == hypotheses(of_run[1])
    record = json.loads(path.read_text())
    assert record["against"]["mean"] == {"difference": 0, "interval": [0, 0], "p_value": 1}
    assert record["text"]["en"]["kl_nats"] is None
    assert record["text"]["en"]["nats_sum"] == pytest.approx(of_run[0]["text"]["en"]["nats_sum"], rel=1e-6)
    assert not path.with_suffix(".html").exists()
    assert "WER mean minus the other's +0.00%" in capsys.readouterr().out


def test_the_harness_counts_the_same_questions_alike(export, home, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    things = ["lamp", "blinds", "radio", "door", "window"]
    endings = ["on", "off slowly", "up and down", "in the morning, before breakfast"]
    asked = [f"turn the {colour} {thing}" for colour in ("red", "old") for thing in things]
    # without a question the choices are whole sentences
    whole = {f"{thing}s": [f"the {thing} is {ending}" for ending in endings] for thing in things}
    items = {
        "asked": [{"question": text, "choices": endings, "answer": n % 4} for n, text in enumerate(asked)],
        "whole": [{"question": "", "choices": choices, "answer": n % 4} for n, choices in enumerate(whole.values())],
    }
    words = []
    for name, delimiter in (("asked", " "), ("whole", "")):
        questions = tmp_path / f"{name}.jsonl"
        questions.write_text("".join(json.dumps(item) + "\n" for item in items[name]))
        task = tmp_path / f"{name}.yaml"
        task.write_text(HARNESS_TASK.format(name=name, questions=questions, delimiter=delimiter))
        words += ["--tasks", f"{name}={questions}", "--lm-eval", str(task)]
    path = tmp_path / "x.json"
    data = ["--data", str(home / "shards/test/*.tar"), "--max-utterances", "2", "--no-page"]
    assert main(["evaluate", str(export), *data, *words, "--output", str(path)]) == 0
    record = json.loads(path.read_text())
    for name, own in record["tasks"].items():
        theirs = record["lm_eval"][name]
        assert (own["accuracy"], own["normalised_accuracy"]) == (theirs["acc,none"], theirs["acc_norm,none"])
    assert [len(record["tasks"][name]["picked"]) for name in items] == [10, 5]


def test_plain_whisper_is_measured_on_the_same_data_by_the_same_report(of_run, home, tmp_path):
    path = tmp_path / "whisper.json"
    words = ["--data", str(home / "shards/test/*.tar"), "--max-utterances", "2", "--no-page"]
    assert main(["evaluate", str(home / "whisper.pt"), *words, "--output", str(path)]) == 0
    record = json.loads(path.read_text())
    assert set(record["wer"]) == set(of_run[0]["wer"])
    assert set(record["wer"]["languages"]) == {"de", "en"}
    assert record["text"] == {}


def test_what_makes_no_sense_is_refused_with_the_remedy(one_rank, export, home, of_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    data = ["--data", str(home / "shards/test/*.tar")]
    part = ["--max-utterances", "2", "--against", str(of_run[1].with_suffix(".hypotheses.jsonl"))]
    questions = tmp_path / "questions.jsonl"
    questions.write_text(ASKED + ASKED.replace("on and on", "on"))
    for words, complaint in (
        ([str(export)], "Give shards with --data"),
        ([str(home / "whisper.pt"), *data, "--text", f"en={home / 'text.txt'}"], "leave --text out"),
        ([str(export), *data, "--text", "text.txt"], "LANGUAGE=PATH"),
        ([str(home / "whisper.pt"), *data, "--tasks", f"en={questions}"], "leave --tasks out"),
        ([str(export), *data, "--tasks", "tasks.jsonl"], "--tasks is 'tasks.jsonl'; it wants LANGUAGE=PATH"),
        ([str(export), *data, "--tasks", f"en={questions}"], "questions.jsonl, line 2: two of the choices are the same"),
        ([str(export), *data, "--step", "4"], "is no run"),
        ([str(tmp_path), *data], "neither a run folder, nor an export"),
        ([str(home / "whisper.pt"), *data, *part], "same utterances"),
        (["whisper:enormous", *data], "no Whisper checkpoint"),
        ([str(one_rank), "--lm-eval", "hellaswag"], "kappaspeech export"),
        ([str(export), *data, "--lm-eval", "hellaswag"], "kappaspeech[lm-eval]"),
    ):
        assert main(["evaluate", *words, "--output", str(tmp_path / "x.json"), "--no-page"]) == 2, words
        assert complaint in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()
