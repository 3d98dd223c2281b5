"""A trained model is known again by what it says, and not by where it lies."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from kappaspeech.errors import InputError
from kappaspeech.trained.identity import identify


@pytest.fixture
def export(tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "speech.json").write_text('{"schema_version": 1, "instruction": "write"}')
    (folder / "config.json").write_text("{}")
    save_file({"w": torch.arange(6.0).reshape(2, 3)}, folder / "model.safetensors")
    return folder


def test_a_copy_and_what_lies_beside_it_change_nothing(export, tmp_path):
    digest = identify(export)
    copy = shutil.copytree(export, tmp_path / "copy")
    (copy / "evaluation.json").write_text("{}")
    assert identify(copy) == digest


@pytest.mark.parametrize("name", ["speech.json", "config.json"])
def test_another_prompt_or_config_is_another_model(export, name):
    digest = identify(export)
    (export / name).write_text(json.dumps({"schema_version": 1, "instruction": "translate"}))
    assert identify(export) != digest


def test_another_number_of_beams_is_another_model_and_an_llms_own_settings_are_not_followed(export):
    digests = []
    for config in ("{}", '{"model_type": "kappaspeech"}'):
        (export / "config.json").write_text(config)
        for num_beams in (1, 4):
            (export / "generation_config.json").write_text(json.dumps({"num_beams": num_beams}))
            digests.append(identify(export))
    assert digests[0] == digests[1]
    assert digests[2] != digests[3]


def test_another_weight_is_another_model(export):
    digest = identify(export)
    weights = load_file(export / "model.safetensors")
    save_file({"w": weights["w"] + torch.eye(2, 3)}, export / "model.safetensors")
    assert identify(export) != digest


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="neither a run folder"):
        identify(tmp_path)
