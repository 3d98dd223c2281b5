"""A plan before anything is downloaded: shapes by name, what is refused, and what is said of it."""

from __future__ import annotations

import json
import os
import socket

import pytest
import torch

from kappaspeech.commands import main
from kappaspeech.errors import CheckpointError
from kappaspeech.planning.known_models import encoder_name, find_encoder, find_llm, hub_answers, stand_in
from tests import tiny
from tests.documents import REPOSITORY

# as the makers count them, by the safetensors indices of their repositories
NUM_PARAMETERS = {
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "models/smollm2-135m-instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B-Base": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "google/gemma-2-2b-it": 2_614_341_888,
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-3-1b-pt": 999_885_952,
}


@pytest.mark.parametrize("name", NUM_PARAMETERS)
def test_a_shape_has_as_many_parameters_as_its_maker_counts(name):
    from transformers import AutoModelForCausalLM

    found = find_llm(name)
    assert found is not None
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(found[1])
    assert sum(parameter.numel() for parameter in llm.parameters()) == NUM_PARAMETERS[name]


@pytest.mark.parametrize("name", ["nobody/nothing", "meta-llama/Llama-3.1-8B-Vision", "qwen3", ""])
def test_another_name_is_unknown(name):
    assert find_llm(name) is None


def test_encoders_are_known_by_openai_whispers_names_alone():
    import whisper

    assert all(find_encoder(name) is not None for name in whisper.available_models())
    assert find_encoder("large-v3") == (128, 1280, 20, 32)
    assert find_encoder("base.en") == (80, 512, 8, 6)
    for name in ("large-v9", "base-v3", "large-turbo", "huge", "", "models/whisper-base.pt"):
        assert find_encoder(name) is None
    assert encoder_name("models/whisper-base.pt") == "base"
    assert encoder_name("large-v3.pt") == "large-v3"


def test_an_encoder_that_does_not_exist_is_refused(capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert main(["plan", "launch/configs/llama8b.yaml", "--set", "model.encoder=large-v9"]) == 2
    assert "'large-v9' is neither a file nor one of openai-whisper's names (tiny, " in capsys.readouterr().err


def test_the_quickstart_is_planned_before_anything_is_there(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = str(REPOSITORY / "launch/configs/quickstart.yaml")
    words = ["plan", config, "--set", f"deepspeed={REPOSITORY}/ds_configs/zero3_cpu.json", "--world-size", "2"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "models/smollm2-135m-instruct isn't here; its shape is SmolLM2-135M's, known by name" in printed
    assert "models/whisper-base.pt isn't here; its shape is that of Whisper base, known by name" in printed
    assert "rates are assumed, not measured" in printed
    assert main([*words, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    (plan,) = content["plans"]
    low, high = plan["run_seconds"]
    assert 0 < low < 160 * plan["step_seconds"]["total"] < high
    assert plan["allocated_bytes"] < plan["least_bytes"] < plan["peak_bytes"]
    assert len(content["assumed"]) == 3


def test_what_is_here_is_taken_as_it_is(home, tmp_path):
    there = stand_in(str(home / "llm"), str(home / "whisper.pt"), tmp_path)
    assert (there.llm, there.encoder, there.taken) == (str(home / "llm"), str(home / "whisper.pt"), ())


def test_a_hub_that_does_not_answer_is_known_at_once(monkeypatch):
    from huggingface_hub import constants

    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert not hub_answers()
        taken.listen()
        assert hub_answers()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert not hub_answers()


def test_the_doctor_takes_no_model_by_its_name(home, tmp_path):
    from kappaspeech.config.run_config import read_run_config
    from kappaspeech.planning.meta_model import build_meta_model

    path = tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run")
    config = read_run_config(path, overrides={"model.llm": "meta-llama/Llama-3.1-8B"})
    with pytest.raises(CheckpointError):
        build_meta_model(config)


def test_a_shape_that_the_hub_gave_is_told(home, tmp_path, monkeypatch):
    monkeypatch.setattr("kappaspeech.planning.known_models.fetch_config", lambda _name: str(home / "llm"))
    found = stand_in("someone/new-model", str(home / "whisper.pt"), tmp_path)
    assert found.llm == str(home / "llm")
    assert found.taken == ("model.llm: someone/new-model isn't here; its shape is from the hub's config.json of that name",)
