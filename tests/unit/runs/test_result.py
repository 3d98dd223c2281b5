"""A run's worth to a scan: its record, and the newest of its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kappaspeech.errors import CheckpointError
from kappaspeech.model.lora import LoraShape
from kappaspeech.runs.result import RunResult, read_result

LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "transposed": ["a.weight"]}
RECORD = {"schema_version": 1, "dtype": "bfloat16", "checkpoint_digest": "ab12", "lora": LORA}


def make(folder: Path, *, steps=(2, 10), average: bool = False, record=RECORD, llm: object = "base") -> Path:
    for step in steps:
        path = folder / f"checkpoints/step-{step:06}"
        path.mkdir(parents=True)
        (path / "trained.safetensors").touch()
        if average:
            (path / "average.safetensors").touch()
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"schema_version": 1, "model": {"llm": llm}}))
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_a_run_is_worth_its_newest_checkpoint_on_its_base(tmp_path):
    weights = tmp_path / "checkpoints/step-000010/trained.safetensors"
    shape = LoraShape(4, 8.0, 0.0, ("a.weight",))
    assert read_result(make(tmp_path)) == RunResult("base", "ab12", weights, "bfloat16", shape)


def test_the_moving_average_counts_where_there_is_one(tmp_path):
    assert read_result(make(tmp_path, average=True)).trained.name == "average.safetensors"


def test_what_an_older_run_does_not_say_is_none(tmp_path):
    found = read_result(make(tmp_path, record={"schema_version": 1}))
    assert (found.base_digest, found.dtype, found.lora) == (None, None, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": ()}, "is a run without a checkpoint yet. Scan its base model base instead"),
        ({"llm": 3}, r"config\.json doesn't name the run's model"),
        ({"record": {**RECORD, "dtype": 16}}, r"run\.json doesn't say what the run did"),
        ({"record": {**RECORD, "lora": {"rank": 4}}}, r"run\.json doesn't say what the run did"),
    ],
)
def test_a_run_that_is_not_whole_is_refused_with_its_file(tmp_path, changes, said):
    with pytest.raises(CheckpointError, match=said):
        read_result(make(tmp_path, **changes))
