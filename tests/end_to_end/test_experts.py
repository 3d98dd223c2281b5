"""Single experts of fused tensors from scan to export: in files that have them apart, and in files that have them fused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kappaspeech.commands import main
from kappaspeech.expert_names import split_expert
from kappaspeech.model.llm import load_llm
from kappaspeech.scan.checkpoint import open_checkpoint
from kappaspeech.selection.tensor_selection import TensorSelection
from kappaspeech.trained.arithmetic import UseArithmetic
from kappaspeech.trained.opening import open_run
from tests import families, tiny
from tests.patience import patience

pytestmark = pytest.mark.slow

COUNT = 5


# family → whether its files have experts apart, as the hub's do, and the ranks of the first steps and of one more
@pytest.fixture(scope="module", params=[("Mixtral", True, 2, 1), ("Qwen3-MoE", False, 1, 1), ("OLMoE", True, 1, 2)], ids=str)
def folder(request, nursery, home, tmp_path_factory) -> Path:
    """A folder with llm/, selection.json of experts, run/ and export/."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    family, apart, *ranks = request.param
    folder = tmp_path_factory.mktemp("experts")
    tokenizer = AutoTokenizer.from_pretrained(home / "llm")
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(families.make_config(family, vocabulary=len(tokenizer)), dtype=torch.bfloat16)
    llm.save_pretrained(folder / "llm", save_original_format=apart)
    tokenizer.save_pretrained(folder / "llm")
    assert main(["scan", str(folder / "llm"), "--output", str(folder / "ranking.json")]) == 0
    words = ["--count", str(COUNT), "--include", "*experts*", "--output", str(folder / "selection.json")]
    assert main(["select", str(folder / "ranking.json"), *words]) == 0
    for num_steps, num_ranks in zip((2, 3), ranks, strict=True):
        changes = {"model__llm": str(folder / "llm"), "unfreeze__selection": str(folder / "selection.json"), "data__test": []}
        changes |= {"training__num_steps": num_steps, "optimizer__llm_learning_rate": 1e-2, "training__ema_decay": 0.5}
        config = tiny.write_config(folder / "run.yaml", home, folder / "run", **changes)
        pids = nursery.start("train", config, ranks=num_ranks, output=folder / "log.txt")
        codes = nursery.wait(pids, timeout_seconds=patience(60))
        assert codes == [0] * num_ranks, (folder / "log.txt").read_text()[-3000:]
    assert main(["export", str(folder / "run"), str(folder / "export")]) == 0
    return folder


def test_the_selected_experts_change_and_every_other_bit_of_the_export_is_the_bases(folder):
    base, exported = load_file(folder / "llm/model.safetensors"), load_file(folder / "export/model.safetensors")
    selection = TensorSelection.read(folder / "selection.json")
    assert len(selection.names) == COUNT
    assert base.keys() == exported.keys()
    for name in selection.names:
        tensor, expert = split_expert(name)
        before, after = (tensors[tensor] if expert is None else tensors[tensor][expert] for tensors in (base, exported))
        assert not torch.equal(before, after)
        # what is left is what didn't train
        after.copy_(before)
    assert all(torch.equal(tensor, exported[name]) for name, tensor in base.items())


def test_a_run_proves_it_and_keeps_state_of_the_selected_experts_alone(folder):
    selection = TensorSelection.read(folder / "selection.json")
    proof = json.loads((folder / "run/frozen.json").read_text())
    assert proof["changed"] == []
    assert sum("experts" in name for name in proof["after"]) >= 4
    record = json.loads((folder / "run/run.json").read_text())
    assert record["num_llm_trained_parameters"] == selection.num_parameters
    checkpoint = folder / "run/checkpoints/step-000003"
    trained, moments, average = (load_file(checkpoint / f"{name}.safetensors") for name in ("trained", "optimizer", "average"))
    assert {name.removeprefix("llm.") for name in trained if name.startswith("llm.")} == set(selection.names)
    assert moments.keys() == {f"{name}/{state}" for name in trained for state in ("exp_avg", "exp_avg_sq")}
    assert average.keys() == trained.keys()
    drift = json.loads((folder / "run/drift.json").read_text())
    assert drift["relative_frobenius"].keys() == set(selection.names)
    assert all(moved > 0 for moved in drift["relative_frobenius"].values())
    kappas = {tensor.name: tensor.kappa for tensor in selection.tensors}
    assert drift["kappa_before"] == {name: pytest.approx(kappa, rel=1e-5) for name, kappa in kappas.items()}


def test_the_run_its_scan_and_its_export_are_one_model(folder):
    ours = open_run(folder / "run").load_model(UseArithmetic(bfloat16_is_fast=True)).llm
    exported = dict(load_llm(str(folder / "export"), dtype=torch.bfloat16).named_parameters())
    assert all(torch.equal(parameter, exported.pop(name)) for name, parameter in ours.named_parameters())
    assert exported == {}
    scanned, written = open_checkpoint(folder / "run"), open_checkpoint(folder / "export")
    assert [(ref.name, ref.shape) for ref in scanned.tensors] == [(ref.name, ref.shape) for ref in written.tensors]
    for ref in scanned.tensors:
        count = int(torch.Size(ref.shape).numel())
        assert scanned.read(ref.name, 0, count).tobytes() == written.read(ref.name, 0, count).tobytes(), ref.name
