"""A difference put together with its base: the same model wherever it is opened, and whatever its base is stored in."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from kappaspeech.artefacts import write_json
from kappaspeech.model.adaptor import AdaptorShape
from kappaspeech.model.lora import LoraShape, lora_to_record
from kappaspeech.model.trained import build_adaptor
from kappaspeech.scan.checkpoint import open_checkpoint
from kappaspeech.trained.arithmetic import UseArithmetic
from kappaspeech.trained.difference import Difference, SpeechParts
from kappaspeech.trained.export import export
from kappaspeech.trained.opening import open_difference
from tests import tiny

SHAPE = AdaptorShape(tiny.ENCODER_WIDTH, 32, 32, 4, 4, 0.0, 1.0)
ADAPTED = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """An LLM stored in float32, whose weights bfloat16 doesn't hold."""
    folder = tiny.make_llm(tmp_path_factory.mktemp("base") / "llm")
    llm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for parameter in llm.parameters():
            parameter.mul_(1 + 1 / 3)
    llm.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def difference(base, tmp_path_factory) -> Difference:
    """LoRA on one of its tensors, trained in bfloat16."""
    folder = tmp_path_factory.mktemp("difference")
    generator = torch.Generator().manual_seed(3)
    factors = {"lora_A": torch.randn(2, 32, generator=generator), "lora_B": torch.randn(48, 2, generator=generator)}
    adaptor = {f"adaptor.{name}": tensor for name, tensor in build_adaptor(SHAPE, seed=0).state_dict().items()}
    save_file(
        {f"llm.{ADAPTED}.{name}.weight": 0.1 * tensor for name, tensor in factors.items()} | adaptor,
        folder / "trained.safetensors",
    )
    parts = SpeechParts("whisper.pt", False, "Transcribe", True, "bfloat16", SHAPE, "float32")
    origin = {"llm": str(base), "checkpoint_digest": open_checkpoint(str(base)).digest}
    write_json(folder / "speech.json", {**parts.to_json(), "base": origin, "lora": lora_to_record(LoraShape(2, 4.0, 0.0))})
    return open_difference(folder)


def test_a_slow_machine_uses_the_numbers_that_were_trained(difference):
    fast, slow = (difference.load_model(UseArithmetic(bfloat16_is_fast=is_fast)) for is_fast in (True, False))
    assert (fast.llm.dtype, slow.llm.dtype) == (torch.bfloat16, torch.float32)
    theirs = dict(slow.llm.named_parameters())
    assert [name for name, own in fast.llm.named_parameters() if not torch.equal(own.float(), theirs[name])] == []
    # the base that forgetting is measured against was rounded, too
    assert torch.equal(fast.base_tensors[f"{ADAPTED}.weight"].float(), slow.base_tensors[f"{ADAPTED}.weight"])


def test_an_export_holds_what_the_difference_computes_with(difference, tmp_path):
    export(difference.where, tmp_path / "export")
    exported = load_file(tmp_path / "export/model.safetensors")
    opened = dict(difference.load_model(UseArithmetic(bfloat16_is_fast=True)).llm.named_parameters())
    assert exported.keys() == opened.keys()
    assert [name for name, tensor in exported.items() if not torch.equal(tensor, opened[name])] == []
