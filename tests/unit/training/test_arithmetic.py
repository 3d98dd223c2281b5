from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig

from kappaspeech.config.run_config import read_run_config
from kappaspeech.errors import ConfigError
from kappaspeech.model.family import Attentions
from kappaspeech.ranks.cluster import SingleProcess
from kappaspeech.runs.folder import RunFolder
from kappaspeech.training import arithmetic
from kappaspeech.training.arithmetic import choose_arithmetic
from tests import tiny

CPU = torch.device("cpu")
NATIVE = {"float32": 44.0, "bfloat16": 92.0}
EMULATING = {"float32": 53.0, "bfloat16": 0.5}
AUTO, BFLOAT16, FLOAT32 = ({"bf16": {"enabled": value}} for value in ("auto", True, False))


@pytest.fixture
def choose(home, tmp_path, monkeypatch):
    """The choice of a machine of certain rates, for a DeepSpeed JSON, in a folder where a run may have been."""
    config = read_run_config(tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", model__encoder_dtype="auto"))

    def run(rates, deepspeed_config):
        monkeypatch.setattr(arithmetic, "measure_rates", lambda *_: rates)
        return choose_arithmetic(
            config, deepspeed_config, cluster=SingleProcess(), device=CPU, folder=RunFolder(tmp_path / "run")
        )

    return run


def leave_a_run(folder, made, *, has_checkpoint=True, **more):
    folder.mkdir()
    record = {"dtype": made.dtype, "encoder_dtype": made.encoder_dtype, "attn_implementation": made.attention, **more}
    (folder / "run.json").write_text(json.dumps({"schema_version": 1, **record}))
    if has_checkpoint:
        (folder / "checkpoints/step-000002").mkdir(parents=True)


def test_what_is_left_to_the_machine_is_what_it_does_fastest(choose):
    native, emulating = choose(NATIVE, AUTO), choose(EMULATING, AUTO)
    assert (native.dtype, native.encoder_dtype, native.attention) == ("bfloat16", "bfloat16", "kappaspeech_matmul")
    assert (emulating.dtype, emulating.encoder_dtype, emulating.attention) == ("float32", "float32", "sdpa")
    assert emulating.line == "float32: bfloat16 is emulated on this processor, 106 times slower"
    assert native.resolve(AUTO) == BFLOAT16
    assert emulating.resolve({**AUTO, "zero_optimization": {"stage": 3}}) == {**FLOAT32, "zero_optimization": {"stage": 3}}


def test_what_the_json_says_counts_and_what_it_costs_is_told(choose):
    made = choose(EMULATING, BFLOAT16)
    assert (made.dtype, made.encoder_dtype, made.attention) == ("bfloat16", "float32", "sdpa")
    assert "in float32 this would be faster: bfloat16 is emulated" in made.line
    assert choose(NATIVE, FLOAT32).dtype == choose(NATIVE, {}).dtype == "float32"


def test_a_run_that_goes_on_elsewhere_keeps_what_it_began_with_and_says_so(choose, tmp_path):
    leave_a_run(tmp_path / "run", choose(NATIVE, AUTO))
    again = choose(EMULATING, AUTO)
    assert (again.dtype, again.encoder_dtype, again.attention) == ("bfloat16", "bfloat16", "kappaspeech_matmul")
    assert again.line.startswith("bfloat16: the run began in it; a new one would take float32 here: bfloat16 is emulated")


@pytest.mark.parametrize("began", [True, False])
def test_a_run_packs_its_clips_on_processors_and_goes_on_as_it_began(choose, tmp_path, began):
    made = choose(NATIVE, AUTO)
    assert (made.packs, made.why_padded) == (True, None)
    leave_a_run(tmp_path / "run", made, packs=began)
    assert choose(NATIVE, AUTO).packs is began


def test_a_run_of_a_version_that_knew_no_packed_rows_is_padded_as_before(choose, tmp_path):
    leave_a_run(tmp_path / "run", choose(NATIVE, AUTO))
    assert (choose(NATIVE, AUTO).packs, choose(NATIVE, AUTO).why_padded) == (False, None)


def test_a_family_that_can_not_pack_is_padded_and_says_why(choose, monkeypatch):
    monkeypatch.setattr(arithmetic, "read_config", lambda _: AutoConfig.for_model("bloom"))
    made = choose(NATIVE, AUTO)
    assert (made.packs, made.why_padded) == (False, "BloomForCausalLM takes no attention but its own")


@pytest.mark.parametrize(
    ("packing", "model_type", "packs"), [(False, "llama", False), (True, "llama", True), (True, "bloom", None)]
)
def test_what_the_yaml_says_of_packing_counts(home, tmp_path, monkeypatch, packing, model_type, packs):
    config = read_run_config(tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", batch__packing=packing))
    monkeypatch.setattr(arithmetic, "measure_rates", lambda *_: NATIVE)
    monkeypatch.setattr(arithmetic, "read_config", lambda _: AutoConfig.for_model(model_type))
    folder = RunFolder(tmp_path / "run")
    if packs is None:
        with pytest.raises(ConfigError, match="packing is true, and BloomForCausalLM"):
            choose_arithmetic(config, AUTO, cluster=SingleProcess(), device=CPU, folder=folder)
    else:
        made = choose_arithmetic(config, AUTO, cluster=SingleProcess(), device=CPU, folder=folder)
        assert (made.packs, made.why_padded) == (packs, None)


def test_a_run_without_a_checkpoint_has_not_begun(choose, tmp_path):
    leave_a_run(tmp_path / "run", choose(NATIVE, AUTO), has_checkpoint=False)
    assert choose(EMULATING, AUTO).dtype == "float32"


def test_the_machine_chooses_among_what_the_family_computes_by(choose, monkeypatch):
    monkeypatch.setattr(arithmetic, "read_attentions", lambda _: Attentions("Gemma", sdpa=False))
    assert choose(NATIVE, AUTO).attention == choose(EMULATING, AUTO).attention == "eager"


@pytest.mark.parametrize("precision", [{"bf16": {"enabled": "yes"}}, {"bf16": True}, {"fp16": {"enabled": True}}])
def test_a_precision_that_is_none_is_refused_with_what_may_stand_there(tmp_path, precision):
    from kappaspeech.config.deepspeed_config import read_deepspeed_config

    path = tmp_path / "ds.json"
    path.write_text(json.dumps({**precision, "zero_optimization": {"stage": 3}}))
    with pytest.raises(ConfigError, match="auto"):
        read_deepspeed_config(path)
