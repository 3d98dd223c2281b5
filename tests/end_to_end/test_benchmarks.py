"""Benchmarks that wait for a GPU, rehearsed without one."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kappaspeech.config.data_config import DatasetConfig
from kappaspeech.model.precision import is_worth_it, measure_rates
from kappaspeech.runs.folder import RunFolder
from kappaspeech.speech.batches import label_ids
from kappaspeech.speech.corpus import make_datasets
from kappaspeech.speech.held_out import read_test_batches
from kappaspeech.speech.normalisers import normalise_text
from tests.conftest import clean_environment
from tests.patience import patience

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_model_of_random_weights_is_trained_and_its_utilisation_told():
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "benchmarks/train.py"), "--shape", "tiny"],
        env=clean_environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=patience(120),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads(done.stdout[done.stdout.index("{") :])
    assert record["command"] == "python benchmarks/train.py --device cpu --shape tiny"
    # an emulated bfloat16 has no one rate: small products take another way than the large one that is measured
    most = 1 if is_worth_it(measure_rates(torch.device("cpu"))) else float("inf")
    assert 0 < record["results"]["mfu"] < most
    assert record["results"]["tokens_per_second"] > 0
    assert 0 < record["results"]["num_trained_parameters"] < record["results"]["num_parameters"]


@pytest.mark.slow
def test_step_times_are_measured_and_recorded_by_dtype_and_ranks(home, tmp_path):
    """On a tiny model, whose bfloat16 trains in seconds also if it is emulated."""
    work, output = tmp_path / "quickstart", tmp_path / "step_time.json"
    work.mkdir()
    (work / "selection.json").symlink_to(home / "selection.json")
    shards = {"data.train": f"[{{shards: {home}/shards/train/*.tar}}]", "data.text": "{}"}
    values = {"model.llm": home / "llm", "model.encoder": home / "whisper.pt", "model.adaptor.num_heads": 2, **shards}
    words = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    options = ["--work", str(work), "--kinds", "native", "--layouts", "1x1", "2x1", "--output", str(output)]
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "benchmarks/step_time.py"), *options, *words],
        env=clean_environment(PYTHONPATH=os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "pipeline")])),
        capture_output=True,
        text=True,
        timeout=patience(240),
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    rows = json.loads(output.read_text())["results"]["native"]
    assert [(row["dtype"], row["ranks"], row["threads"]) for row in rows] == [
        (dtype, ranks, 1) for dtype in ("bfloat16", "float32") for ranks in (1, 2)
    ]
    assert all(len(row["step_seconds_of_each"]) == 6 and row["step_seconds"] > 0 for row in rows)
    assert done.stdout.count("audio-s/s") == 4
    assert str(tmp_path) not in output.read_text()


def speak(folder: Path, *sentences: str) -> Path:
    """Recordings of English sentences, by their transcripts; nothing is to be heard in them."""
    folder.mkdir(parents=True)
    for number, _ in enumerate(sentences):
        (folder / f"{number}.flac").touch()
    (folder / "transcripts.tsv").write_text("".join(f"{number}.flac\t{text}\n" for number, text in enumerate(sentences)))
    return folder.parent


def test_a_sentence_that_is_tested_on_is_spoken_in_no_training(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    real_speech = importlib.import_module("real_speech")
    cookies = tmp_path / "fortunes"
    cookies.mkdir()
    (cookies / "wisdom").write_text("The lamp is\nred today.\n%\nOpen the green door.\n%\nA third one of them.\n")
    (cookies / "wisdom.dat").write_bytes(b"\xff")
    real_speech.write_fortunes(cookies, tmp_path / "cookies.txt")
    test = speak(tmp_path / "test/en", "the lamp is RED, today!")
    real_speech.leave_out_tested(tmp_path / "cookies.txt", tmp_path / "kept.txt", tested=real_speech.said(test))
    assert (tmp_path / "kept.txt").read_text() == "Open the green door.\nA third one of them.\n"
    clean = speak(tmp_path / "clean/en", "open the green door")
    real_speech.check_division([clean], test)
    tainted = speak(tmp_path / "tainted/en", "A third one.", "The lamp is: red; today")
    with pytest.raises(SystemExit, match="1 test sentences are in training"):
        real_speech.check_division([clean, tainted], test)


def test_an_alignment_is_read_off_at_each_checkpoint(home, train, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    curve = importlib.import_module("alignment_curve")
    steps = {"training__num_steps": 2, "training__alignment_steps": 2, "training__checkpoint_every_steps": 1}
    run = train("curve", data__test=[], data__text={}, **steps)
    (tmp_path / "shards/test").mkdir(parents=True)
    for file in (home / "shards/test").glob("en-*"):
        (tmp_path / "shards/test" / f"real-{file.name}").symlink_to(file)
    sets = make_datasets([DatasetConfig(shards=str(tmp_path / curve.TEST))])
    said = [sample.transcript for batch in read_test_batches(sets, batch_size=40) for sample in batch]
    for source in ("speech", "open"):
        speak(tmp_path / source / "train/en", *said)
    listener = curve.Listener(tmp_path, RunFolder(run).read_config())

    points = list(curve.read_checkpoints(run, listener))
    losses = [json.loads(line)["loss_nats"] for line in (run / "steps.jsonl").read_text().splitlines()]
    assert [point["step"] for point in points] == [1, 2]
    assert [point["alignment_nats"] for point in points] == pytest.approx([losses[0], sum(losses) / 2])
    assert all(point["interval"][0] <= point["wer"] <= point["interval"][1] for point in points)

    # an adaptor that says each token twice and a blank behind it is read off without an error
    texts = iter([sample.transcript for sample in listener.samples])

    def speak_well(_states: torch.Tensor, _counts: torch.Tensor) -> tuple[torch.Tensor, None]:
        ids = label_ids(listener._tokenizer, normalise_text(next(texts), "en", "whisper"))[:-1]
        places = [place for token in ids for place in (listener._tokens.index(token),) * 2 + (0,)]
        return listener._words_VH[places][None], None

    assert listener.read_off(speak_well)["wer"] == 0.0
