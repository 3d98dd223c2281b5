"""Each way to unfreeze, as a user starts it: trained on two ranks, continued on one, proved, exported, used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kappaspeech.commands import main
from kappaspeech.scan.spectrum import spectrum_stats
from kappaspeech.speech.samples import AudioSample, read_recording
from kappaspeech.trained.opening import open_transcriber

pytestmark = pytest.mark.slow

KINDS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
LINEAR = {f"model.layers.{i}.{kind}.weight" for i in (0, 1) for kind in (*KINDS, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")}


@pytest.fixture(scope="module")
def selection(home, tmp_path_factory) -> Path:
    """The three linear modules of smallest κ."""
    path = tmp_path_factory.mktemp("selection") / "selection.json"
    words = ["select", home / "ranking.json", "--count", 3, "--exclude", "*embed_tokens*", "--output", path]
    assert main([str(word) for word in words]) == 0
    return path


@pytest.fixture(scope="module", params=["adaptor", "all", "lora", "plain lora"])
def case(request, home, train, selection):
    """(mode, the base's tensors that change, a run on two ranks; of all and lora continued on one)."""
    base = set(load_file(home / "llm/model.safetensors"))
    chosen = {entry["name"] for entry in json.loads(selection.read_text())["tensors"]}
    mode = request.param.removeprefix("plain ")
    changes = {"adaptor": set(), "all": base, "lora": LINEAR if request.param == "plain lora" else chosen}[mode]
    options = {
        "unfreeze__mode": mode,
        "unfreeze__selection": str(selection) if request.param == "lora" else None,
        "training__checkpoint_every_steps": 0,
        "optimizer__llm_learning_rate": 1e-2,
        "data__test": [],
    }
    if mode == "lora":
        options["unfreeze__lora"] = {"rank": 2, "alpha": 8.0, "dropout": 0.1}
    name = request.param.replace(" ", "-")
    run = train(name, ranks=2, training__num_steps=2, **options)
    if request.param in ("all", "lora"):
        del options["data__test"]
        train(name, ranks=1, training__num_steps=3, **options)
    return mode, changes, run


def test_a_run_proves_what_changed_and_what_did_not(home, case):
    mode, changes, run = case
    base = load_file(home / "llm/model.safetensors")
    proof = json.loads((run / "frozen.json").read_text())
    assert proof["changed"] == []
    frozen = {name.removeprefix("llm.") for name in proof["after"] if name.startswith("llm.")}
    # LoRA's factors change a tensor that itself stays as it was
    assert frozen == set(base) - (changes if mode == "all" else set())
    record = json.loads((run / "drift.json").read_text())
    drift = record["relative_frobenius"]
    assert set(drift) == changes
    assert all(moved > 0 for moved in drift.values())
    matrices = {name: base[name] for name in changes if base[name].dim() == 2}
    assert record["kappa_before"] == {name: pytest.approx(spectrum_stats(w).kappa, rel=1e-5) for name, w in matrices.items()}
    assert set(record["kappa_after"]) == set(matrices)
    assert all(record["kappa_after"][name] != record["kappa_before"][name] for name in matrices)
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


def test_it_is_exported_merged_and_transcribes_as_the_run_does(home, case, tmp_path):
    _, changes, run = case
    assert main(["export", str(run), str(tmp_path / "export")]) == 0
    base, exported = load_file(home / "llm/model.safetensors"), load_file(tmp_path / "export/model.safetensors")
    assert set(base) == set(exported)
    assert {name for name in base if not torch.equal(base[name], exported[name])} == changes
    options = {"device": torch.device("cpu"), "batch_size": 4, "max_new_tokens": 8}
    sample = AudioSample("clip", read_recording(home / "speech/test/en/000.flac"), "", "")
    texts = [open_transcriber(path, **options).transcribe([sample]) for path in (run, tmp_path / "export")]
    assert texts[0] == texts[1]


@pytest.fixture(scope="module")
def averaged(train):
    """Trained with a moving average on two ranks, continued on one; measured there as a replica and under ZeRO-3."""
    options = {"training__ema_decay": 0.9, "optimizer__llm_learning_rate": 1e-2, "training__checkpoint_every_steps": 0}
    train("averaged", ranks=2, training__num_steps=2, data__test=[], **options)
    return train("averaged", training__num_steps=4, evaluation__decode="zero3", **options)


def test_a_moving_average_is_kept_continued_and_what_a_run_is_worth(averaged, tmp_path):
    first, last = (averaged / f"checkpoints/step-{step:06d}" for step in (2, 4))
    weights, average, before = (
        load_file(path) for path in (last / "trained.safetensors", last / "average.safetensors", first / "average.safetensors")
    )
    assert set(weights) == set(average) == set(before)
    for name, tensor in average.items():
        assert not torch.equal(tensor, weights[name])
        assert not torch.equal(tensor, before[name])
    assert main(["export", str(averaged), str(tmp_path / "export")]) == 0
    exported = load_file(tmp_path / "export/model.safetensors")
    chosen = [name for name in average if name.startswith("llm.")]
    assert chosen
    for name in chosen:
        assert torch.equal(exported[name.removeprefix("llm.")], average[name].bfloat16())


def test_a_moving_average_is_measured_alike_under_zero3_and_from_its_checkpoint(averaged, tmp_path):
    assert main(["evaluate", str(averaged), "--output", str(tmp_path / "evaluation.json")]) == 0
    alone = json.loads((tmp_path / "evaluation.json").read_text())
    in_run = json.loads((averaged / "evaluations.jsonl").read_text().splitlines()[-1])
    assert alone["step"] == in_run["step"] == 4
    # ZeRO-3 replaces linear layers in the process that trains, so sums differ in a rounding
    assert alone["text"]["en"]["nats_sum"] == pytest.approx(in_run["text"]["en"]["nats_sum"], rel=1e-3)
