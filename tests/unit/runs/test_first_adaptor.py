"""A run whose adaptor begins with the weights of another's."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kappaspeech.errors import CheckpointError
from kappaspeech.model.adaptor import AdaptorShape
from kappaspeech.model.trained import build_adaptor
from kappaspeech.runs.first_adaptor import AdaptorOrigin, read_first_adaptor

SHAPE = AdaptorShape(encoder_width=16, llm_width=32, width=24, num_heads=4, stacking=4, dropout=0.0, embedding_std=0.02)


@pytest.fixture
def trained() -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in build_adaptor(SHAPE, seed=1).state_dict().items()}


@pytest.fixture
def run(tmp_path, trained) -> Path:
    """A run that tells of its adaptor, at the steps 2 and 10."""
    (tmp_path / "run.json").write_text(json.dumps({"schema_version": 1, "adaptor": dataclasses.asdict(SHAPE)}))
    for step, factor in ((2, 0.5), (10, 1.0)):
        checkpoint = tmp_path / f"checkpoints/step-{step:06d}"
        checkpoint.mkdir(parents=True)
        tensors = {f"adaptor.{name}": factor * tensor for name, tensor in trained.items()}
        save_file({**tensors, "llm.model.norm.weight": torch.ones(3)}, checkpoint / "trained.safetensors")
    return tmp_path


def test_the_adaptor_of_a_runs_last_checkpoint_is_taken_bit_by_bit(run, trained):
    first = read_first_adaptor(run)
    adaptor = build_adaptor(SHAPE, seed=2)
    first.put_into(adaptor)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in adaptor.state_dict().items())
    # rounded once to what the run computes in
    rounded = build_adaptor(SHAPE, seed=2).to(torch.bfloat16)
    first.put_into(rounded)
    assert torch.equal(rounded.project.weight, trained["project.weight"].bfloat16())
    assert first.file == run / "checkpoints/step-000010/trained.safetensors"


def test_a_moving_average_is_taken_in_the_weights_place(run, trained):
    average = {f"adaptor.{name}": tensor + 1 for name, tensor in trained.items()}
    save_file(average, run / "checkpoints/step-000010/average.safetensors")
    assert torch.equal(read_first_adaptor(run).tensors["norm.bias"], trained["norm.bias"] + 1)


def test_an_exported_adaptor_is_the_runs_and_has_its_digest(run, tmp_path, trained):
    export = tmp_path / "exported"
    export.mkdir()
    save_file(trained, export / "adaptor.safetensors")
    (export / "speech.json").write_text(json.dumps({"schema_version": 1, "adaptor": dataclasses.asdict(SHAPE)}))
    first = read_first_adaptor(export)
    assert first.origin.digest == read_first_adaptor(run).origin.digest
    assert first.origin.to_json() == {"file": str(export / "adaptor.safetensors"), "digest": first.origin.digest}
    assert AdaptorOrigin.from_json(first.origin.to_json()) == first.origin
    # another dropout, and another LLM's scale, fit all the same
    first.put_into(build_adaptor(dataclasses.replace(SHAPE, dropout=0.1, embedding_std=0.5), seed=2))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_heads": 8}, "has num_heads 4, not 8"),
        ({"stacking": 2}, "has stacking 4, not 2"),
        ({"llm_width": 48}, "has llm_width 32, not 48"),
    ],
)
def test_an_adaptor_of_other_options_is_refused_by_name(run, change, said):
    with pytest.raises(CheckpointError, match=said):
        read_first_adaptor(run).put_into(build_adaptor(dataclasses.replace(SHAPE, **change), seed=2))


def test_what_holds_no_adaptor_is_refused_with_what_to_give(run, tmp_path):
    with pytest.raises(CheckpointError, match="neither a run's folder"):
        read_first_adaptor(tmp_path / "nowhere")
    weights = run / "checkpoints/step-000010/trained.safetensors"
    tensors = load_file(weights)
    for changed, said in (
        ({"adaptor.project.weight": torch.zeros(2)}, "other tensors"),
        ({"adaptor.project.weight": torch.full((24, 64), float("nan"))}, "aren't finite"),
    ):
        save_file({**tensors, **changed}, weights)
        with pytest.raises(CheckpointError, match=said):
            read_first_adaptor(run).put_into(build_adaptor(SHAPE, seed=2))
    weights.write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="can't be read"):
        read_first_adaptor(run)
    for checkpoint in (run / "checkpoints").iterdir():
        checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.tmp"))
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        read_first_adaptor(run)
