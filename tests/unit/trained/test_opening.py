"""Options that choose a part of what is opened are refused for what has no such part, and never passed over."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from kappaspeech.commands import main
from kappaspeech.config.training_config import EvaluationConfig
from kappaspeech.errors import CheckpointError, InputError
from kappaspeech.model.adaptor import AdaptorShape
from kappaspeech.model.encoder import load_encoder
from kappaspeech.runs.folder import RunFolder
from kappaspeech.trained.arithmetic import UseArithmetic
from kappaspeech.trained.card import make_card
from kappaspeech.trained.difference import SpeechParts
from kappaspeech.trained.export import export, export_adaptor, export_difference
from kappaspeech.trained.opening import TrainedRun, choose_device, explain_best, open_transcriber, pin_step
from kappaspeech.trained.target import find_target
from tests.made_exports import make_export
from tests.made_runs import make_run

EXPORTS = {"difference": ("speech.json", "trained.safetensors"), "export": ("speech.json", "adaptor.safetensors"), "whole": ()}


@pytest.fixture(params=EXPORTS)
def exported(request, tmp_path) -> Path:
    """A folder that is known by its files as an export of a kind."""
    folder: Path = tmp_path / request.param
    folder.mkdir()
    for name in EXPORTS[request.param]:
        (folder / name).write_text("{}")
    if request.param == "whole":
        (folder / "config.json").write_text('{"model_type": "kappaspeech"}')
    return folder


def transcribe(path: Path, **options):
    arithmetic = UseArithmetic(bfloat16_is_fast=False)
    return open_transcriber(path, device=torch.device("cpu"), batch_size=1, max_new_tokens=1, use=arithmetic, **options)


@pytest.mark.parametrize("step", [7, "best"])
def test_a_step_of_an_export_is_refused(exported, tmp_path, step):
    uses = [
        lambda: transcribe(exported, step=step),
        lambda: export_difference(exported, tmp_path / "out", step=step),
        lambda: export_adaptor(exported, tmp_path / "out", step=step),
        lambda: export(exported, tmp_path / "out", step=step),
        lambda: make_card(exported, name="out", step=step),
        lambda: find_target(str(exported), step=step),
    ]
    for use in uses:
        with pytest.raises(InputError, match=r"^--step chooses one of a run's checkpoints, and .* is "):
            use()


def test_a_base_of_what_holds_its_own_is_refused(exported):
    if exported.name == "difference":
        return
    for use in (lambda: transcribe(exported, base="llm"), lambda: find_target(str(exported), base="llm", data=["a.tar"])):
        with pytest.raises(InputError, match=r"^--base is for a run or a difference"):
            use()


def test_plain_whisper_takes_no_instruction():
    with pytest.raises(InputError, match="Plain Whisper takes no instruction"):
        find_target("whisper:small", data=["a.tar"], instruction="Translate. {audio}")


def test_the_command_says_so(exported, tmp_path, capsys):
    kind = {"difference": ["--only", "difference"], "export": ["--only", "adaptor"], "whole": ["--whole"]}[exported.name]
    assert main(["export", str(exported), str(tmp_path / "out"), "--step", "best", *kind]) == 2
    assert "--step chooses one of a run's checkpoints" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_nothing_is_called_that(tmp_path):
    with pytest.raises(InputError, match="is neither a run folder"):
        transcribe(tmp_path, step=7)


def test_a_runs_step_is_taken(tmp_path):
    run = make_run(tmp_path / "run", "smallest", seed=1, error_rate=0.2)
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        transcribe(run, step=7)


@pytest.mark.parametrize("local_rank, num_visible, gpu", [(5, 8, 5), (3, 1, 0), (5, 4, 1)])
def test_a_rank_takes_a_gpu_that_it_sees(monkeypatch, local_rank, num_visible, gpu):
    """srun --gpus-per-task=1 shows each rank one alone, and rank 3 asked for the fourth."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_visible > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_visible)
    assert choose_device(local_rank) == torch.device("cuda", gpu)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"encoder": None}, "encoder is None"),
        ({"dtype": "float99"}, "dtype is 'float99'"),
        ({"adaptor": {"new": 1}}, "unexpected keyword argument 'new'"),
        ({"adaptor": 7}, "must be a mapping"),
        ({"prompt": {"prefix_ids": "no"}}, "no token ids"),
        ({"num_beams": 0}, "the number of beams is 0"),
        ({"num_beams": "4"}, "the number of beams is '4'"),
    ],
)
def test_an_export_of_a_newer_version_or_another_hand_is_refused_in_a_sentence(home, tmp_path, change, told):
    path = make_export(tmp_path / "export", home) / "speech.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | change))
    with pytest.raises(InputError, match=told):
        transcribe(path.parent)


@pytest.mark.parametrize("gone", ["encoder", "dtype", "adaptor", "instruction"])
def test_parts_that_an_export_does_not_name_are_named(home, tmp_path, gone):
    path = make_export(tmp_path / "export", home) / "speech.json"
    content = json.loads(path.read_text())
    del content[gone]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"speech.json can't be read: '{gone}' is missing"):
        transcribe(path.parent)
    (path.parent / "adaptor.safetensors").rename(path.parent / "trained.safetensors")
    with pytest.raises(InputError, match=f"speech.json can't be read: '{gone}' is missing"):
        export_difference(path.parent, tmp_path / "out")


def test_a_difference_without_its_base_is_refused_in_a_sentence(home, tmp_path):
    folder = make_export(tmp_path / "export", home)
    (folder / "adaptor.safetensors").rename(folder / "trained.safetensors")
    with pytest.raises(InputError, match="'base' is missing"):
        export(folder, tmp_path / "out")


def test_a_base_that_has_moved_is_asked_for_by_its_option(home, tmp_path):
    folder = make_export(tmp_path / "export", home)
    (folder / "adaptor.safetensors").rename(folder / "trained.safetensors")
    content = json.loads((folder / "speech.json").read_text())
    moved = {**content, "base": {"llm": "/nowhere/llm", "checkpoint_digest": "0" * 64}}
    (folder / "speech.json").write_text(json.dumps(moved))
    for use in (lambda: transcribe(folder), lambda: export(folder, tmp_path / "out")):
        with pytest.raises(
            CheckpointError, match=r"/nowhere/llm.*If it has moved since the training, name its place with --base"
        ):
            use()


def test_an_export_decodes_with_the_beams_of_its_training_unless_others_are_asked_for(home, tmp_path):
    folder = make_export(tmp_path / "export", home)
    assert transcribe(folder).num_beams == 1
    content = json.loads((folder / "speech.json").read_text())
    (folder / "speech.json").write_text(json.dumps({**content, "num_beams": 3}))
    assert (transcribe(folder).num_beams, transcribe(folder, num_beams=1).num_beams) == (3, 1)
    use = UseArithmetic(bfloat16_is_fast=False)
    for options, num_beams in (({}, 3), ({"num_beams": 2}, 2)):
        decoder = find_target(str(folder), data=["a.tar"], options=options).open_decoder(torch.device("cpu"), use)
        assert decoder.num_beams == num_beams
    # versions before this one recorded none, and were greedy
    del content["num_beams"]
    (folder / "speech.json").write_text(json.dumps(content))
    assert transcribe(folder).num_beams == 1


def test_a_run_says_with_how_many_beams_it_was_evaluated(tmp_path):
    config = RunFolder(make_run(tmp_path / "run", "smallest", seed=1, error_rate=0.2)).read_config()
    config = config.model_copy(update={"evaluation": EvaluationConfig(num_beams=4)})
    record = {"dtype": "float32", "encoder_dtype": "float32", "adaptor": asdict(AdaptorShape(16, 32, 32, 4, 4, 0.0, 0.5))}
    parts = TrainedRun(tmp_path, config, record, tmp_path, 1, 0.0).parts
    assert SpeechParts.from_json(parts.to_json(), tmp_path).num_beams == 4


def test_an_encoder_that_has_moved_beside_its_export_is_found_there(home, tmp_path):
    folder = make_export(tmp_path / "export", home)
    content = json.loads((folder / "speech.json").read_text())
    (folder / "speech.json").write_text(json.dumps({**content, "encoder": "/nowhere/whisper.pt"}))
    with pytest.raises(CheckpointError, match=f"isn't at /nowhere/whisper.pt.*copy it to {folder}/whisper.pt"):
        transcribe(folder)
    shutil.copyfile(home / "whisper.pt", folder / "whisper.pt")
    assert transcribe(folder).encoder.dims == load_encoder(str(home / "whisper.pt")).dims
    # as `push` names it
    (folder / "speech.json").write_text(json.dumps({**content, "encoder": "whisper.pt"}))
    assert transcribe(folder).encoder.dims == load_encoder(str(home / "whisper.pt")).dims


def test_the_last_checkpoint_stays_the_one_that_it_was_when_it_was_chosen(one_rank, tmp_path):
    run = shutil.copytree(one_rank, tmp_path / "run")
    last = max((run / "checkpoints").glob("step-*"))
    chosen = pin_step(run, None)
    assert last.name.endswith(f"{chosen:06d}")
    shutil.copytree(last, last.with_name("step-000099"))
    assert (pin_step(run, None), pin_step(run, chosen)) == (99, chosen)


def write_distances(run: Path, *distances: tuple[int, float]) -> None:
    lines = [json.dumps({"step": step, "kl_nats": nats, "budget_nats": 0.2}) for step, nats in distances]
    (run / "distances.jsonl").write_text("\n".join(lines) + "\n")


def test_a_best_checkpoint_beyond_the_forgetting_budget_is_called_so(one_rank, tmp_path, capsys):
    """The best by WER may be one from before the LLM was drawn back to its budget."""
    run = shutil.copytree(one_rank, tmp_path / "run")
    best, last = pin_step(run, "best"), pin_step(run, None)
    shutil.copytree(run / f"checkpoints/step-{last:06d}", run / f"checkpoints/step-{last + 5:06d}")
    write_distances(run, (best, 0.5), (last + 5, 0.19))
    words = ["export", str(run), "--only", "adaptor", "--step"]
    assert main([*words, "best", str(tmp_path / "one")]) == 0
    said = capsys.readouterr().err
    assert f"warning: The best checkpoint of {run} by WER, of step {best}, was saved 0.5 nats a token from the base" in said
    assert "beyond the run's budget of 0.2. The last one keeps it: leave --step out." in said
    assert main([*words, str(best), str(tmp_path / "two")]) == 0
    write_distances(run, (best, 0.21), (last + 5, 0.5))
    assert main([*words, "best", str(tmp_path / "three")]) == 0
    assert "budget" not in capsys.readouterr().err
    write_distances(run, (best, 0.5))
    assert "leave --step out" not in str(explain_best(run, "best"))
