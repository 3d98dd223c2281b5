"""Benchmarks that wait for a GPU, rehearsed without one."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kappaspeech.config.data_config import DatasetConfig
from kappaspeech.errors import InputError
from kappaspeech.model.precision import is_worth_it, measure_rates
from kappaspeech.runs.folder import RunFolder
from kappaspeech.speech.batches import label_ids
from kappaspeech.speech.corpus import make_datasets
from kappaspeech.speech.held_out import read_test_batches
from kappaspeech.speech.normalisers import normalise_text
from tests.conftest import clean_environment
from tests.made_runs import TENSORS, make_run
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


def keep_made_runs(folder: Path, *runs: tuple[str, str], **facts: Any) -> Path:
    """An archive of runs' folders of a name and a status, with a checkpoint and these facts in the record of each."""
    archive = importlib.import_module("run_archive")
    for name, status in runs:
        (folder / "runs" / name / "checkpoints/step-1").mkdir(parents=True)
        (folder / "runs" / name / "checkpoints/step-1/trained.safetensors").touch()
        record = {"status": status, "schema_version": 1, "versions": {"torch": "2"}, "dtype": "bfloat16", **facts}
        (folder / "runs" / name / "run.json").write_text(json.dumps(record))
    archive.keep_runs(folder, folder / "kept/runs.tar.xz")
    return folder / "kept/runs.tar.xz"


TRIALS = [f"{arm}-seed{seed}" for seed in (17, 18, 19) for arm in ("smallest-kappa", "random")]
# the random run of seed 19 hasn't ended
KEPT = [(name, "running" if name == TRIALS[-1] else "finished") for name in TRIALS]


def test_finished_runs_go_from_one_machine_to_another_by_whole_seeds(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    archive = importlib.import_module("run_archive")
    kept, other = keep_made_runs(tmp_path / "one", *KEPT, initial_adaptor={"digest": "a"}), tmp_path / "other"
    (other / "runs/random-seed17").mkdir(parents=True)
    here = archive.Here({"torch": "2"}, "bfloat16", "b")
    assert archive.bring_runs(kept, other, TRIALS, here) == ["smallest-kappa-seed18", "random-seed18"]
    found = sorted(path.relative_to(other / "runs").as_posix() for path in other.rglob("*") if path.is_file())
    assert found == ["random-seed18/run.json", "smallest-kappa-seed18/run.json"]


def test_finished_runs_that_began_with_the_same_adaptor_go_by_themselves(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    archive = importlib.import_module("run_archive")
    kept, other = keep_made_runs(tmp_path / "one", *KEPT, initial_adaptor={"digest": "a"}), tmp_path / "other"
    (other / "runs/random-seed17").mkdir(parents=True)
    brought = archive.bring_runs(kept, other, TRIALS, archive.Here({"torch": "2"}, "bfloat16", "a"))
    assert brought == [name for name in TRIALS if name not in ("random-seed17", "random-seed19")]


@pytest.mark.parametrize(("versions", "dtype"), [({"torch": "2.1"}, "bfloat16"), ({"torch": "2"}, "float32")])
def test_finished_runs_that_would_not_compare_stay_behind(tmp_path, monkeypatch, versions, dtype):
    """All trials would be trained for hours, and the comparison would refuse them at its end."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    archive = importlib.import_module("run_archive")
    kept = keep_made_runs(tmp_path / "one", *KEPT, initial_adaptor={"digest": "a"})
    assert archive.bring_runs(kept, tmp_path / "other", TRIALS, archive.Here(versions, dtype, "a")) == []
    assert not (tmp_path / "other").exists()


def test_a_torn_archive_of_runs_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    archive = importlib.import_module("run_archive")
    kept = keep_made_runs(tmp_path / "one", *KEPT)
    kept.write_bytes(kept.read_bytes()[:200])
    with pytest.raises(InputError, match=r"runs\.tar\.xz can't be read: .* Bring it back"):
        archive.bring_runs(kept, tmp_path / "other", TRIALS, archive.Here({"torch": "2"}, "bfloat16", None))


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


# a way takes a process of its own, and the tiny models have fewer heads than the recipe's
WAY_SCRIPT = """
import argparse, json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import train, train_ours
read, home = train_ours.read_run_config, Path(sys.argv[2])
train_ours.read_run_config = lambda path, overrides: read(path, overrides={**overrides, "model.adaptor.num_heads": 2})
models = {"llm": home / "llm", "encoder": home / "whisper.pt", "selection": home / "selection.json"}
arguments = argparse.Namespace(one=sys.argv[3], **models, speech=home / "speech/train", clips=8, threads=1)
print(json.dumps(train.measure_way(arguments)))
"""


@pytest.mark.slow
def test_our_own_ways_are_measured_on_the_same_clips_and_told_beside_padded_rows(home, nursery, monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    train = importlib.import_module("train")
    measured = {}
    for way in train.WAYS:
        done = nursery.run(REPOSITORY / "benchmarks", home, way, code=WAY_SCRIPT)
        assert done.returncode == 0, done.stderr[-3000:]
        measured[way] = json.loads(done.stdout.splitlines()[-1])
    padded, packed, kept = measured.values()
    for key in ("num_steps", "alignment_num_steps", "num_target_tokens", "alignment_num_target_tokens"):
        assert padded[key] == packed[key] == kept[key] > 0
    assert padded["num_steps"] == 1
    for key in ("loss_nats_of_warm_up", "loss_nats", "alignment_loss_nats"):
        # products of other shapes in bfloat16 are rounded otherwise
        assert packed[key] == pytest.approx(padded[key], rel=0.02)
        assert kept[key] == pytest.approx(packed[key], rel=0.02)
    for result in measured.values():
        rates = [result[f"{name}audio_seconds_per_second"] for name in ("", "recipe_", "alignment_")]
        assert min(rates[0], rates[2]) <= rates[1] <= max(rates[0], rates[2])

    monkeypatch.setattr(train, "measure", lambda way, _arguments: measured[way])
    table = train.compare(argparse.Namespace(ways=True, repeats=2))
    rate = "recipe_audio_seconds_per_second"
    assert list(table) == list(train.WAYS)
    assert table["padded_rows"][f"times_padded_in_{rate}"] == 1
    assert table["packed_rows"][f"times_padded_in_{rate}"] == pytest.approx(packed[rate] / padded[rate])
    assert table["packed_rows"][f"{rate}_of_each"] == [packed[rate]] * 2


def test_tasks_of_runs_are_recorded_beside_their_bases_if_all_were_asked_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    tasks = importlib.import_module("tasks")

    def evaluate(name: str, num_questions: int) -> Path:
        """The evaluation of a run that answers half of its questions otherwise than its base."""
        asked = {"num_questions": num_questions, "num_instructions": 4, "lost": 0.5}
        run = make_run(tmp_path / name, "smallest κ", seed=1, error_rate=0.2, selected=list(TENSORS)[:2], **asked)
        last = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
        (tmp_path / f"{name}.json").write_text(json.dumps({**last, "model": str(run)}))
        return tmp_path / f"{name}.json"

    def record(*evaluations: Path) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["tasks.py", *map(str, evaluations), "--output", str(tmp_path / "tasks.json")])
        tasks.main()
        return json.loads((tmp_path / "tasks.json").read_text())

    first, second, other = evaluate("first", 4), evaluate("second", 4), evaluate("other", 6)
    found = record(first, second)
    assert found["commands"][-1] == "python benchmarks/tasks.py R.json... --output tasks.json"
    assert [run["run"] for run in found["runs"]] == ["first", "second"]
    told = found["runs"][0]
    assert (told["arm"], told["step"], told["num_llm_parameters"] > 0) == ("smallest κ", 60, True)
    asked = json.loads(first.read_text())
    for name in ("tasks", "instructions"):
        for language, report in told[name].items():
            assert report["base"]["difference"] == asked[name][language]["base"]["difference"] < 0
            assert report["base"]["flipped"] == 0.5
            assert not {"picked", "right", "followed", "answers"} & {*report, *report["base"]}
    assert "lost 50.0%" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="aren't of the same tasks"):
        record(first, other)
    run = json.loads((tmp_path / "second/run.json").read_text())
    (tmp_path / "second/run.json").write_text(json.dumps({**run, "checkpoint_digest": "1" * 64}))
    with pytest.raises(SystemExit, match="aren't of one base"):
        record(first, second)


def test_a_record_of_reading_shards_names_its_parts_in_its_command(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    stream = importlib.import_module("stream")
    assert stream.name_command(stream.PARTS, 3) == "python benchmarks/stream.py --shards '…/*.tar' --repeats 3"
    output = tmp_path / "stream.json"

    def record(part: str, repeats: int = 3) -> dict[str, Any]:
        """A record of one part of the same shards, with what an earlier one holds; kept."""
        content = {"planning": {"planning": 1}, "memory": {"resident_megabytes": 1}}.get(part, {})
        readings = {} if content else {f"{part}, local, kappaspeech": 1}
        made = {"command": stream.name_command([part], repeats), "shards": 6, "readings": readings, **content}
        whole = stream.with_earlier_parts(made, output)
        output.write_text(json.dumps(whole), encoding="utf-8")
        return whole

    assert record("memory")["command"] == "python benchmarks/stream.py --shards '…/*.tar' --parts memory --repeats 3"
    assert record("bytes")["command"] == "python benchmarks/stream.py --shards '…/*.tar' --parts bytes memory --repeats 3"
    for part in ("waveform", "features", "planning"):
        whole = record(part)
    assert whole["command"] == stream.name_command(stream.PARTS, 3)
    assert list(whole["readings"]) == [f"{part}, local, kappaspeech" for part in ("bytes", "waveform", "features")]
    # measured otherwise, so by itself
    assert record("bytes", repeats=5)["readings"].keys() == {"bytes, local, kappaspeech"}
    assert json.loads(output.read_text())["command"].endswith("--parts bytes --repeats 5")
    kept = json.loads((REPOSITORY / "benchmarks/results/stream.json").read_text(encoding="utf-8"))
    assert kept["command"] == stream.name_command(stream.parts_of(kept), 3)
