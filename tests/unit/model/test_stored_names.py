"""Files whose names differ from the model's."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file, save_file

from kappaspeech.errors import CheckpointError
from kappaspeech.expert_names import split_expert
from kappaspeech.model.adaptor import AdaptorShape
from kappaspeech.model.freezing import unfreeze
from kappaspeech.model.llm import load_llm
from kappaspeech.model.meta_llm import build_meta_llm
from kappaspeech.model.stored_names import model_names, rename_shapes
from kappaspeech.model.trained import base_weights, build_adaptor, load_trained_model
from kappaspeech.model.trained_tensors import list_trained
from kappaspeech.scan.checkpoint import open_checkpoint
from kappaspeech.trained.difference import SPEECH_FILE, TRAINED_FILE
from kappaspeech.trained.export import export
from kappaspeech.trained.merged_files import read_base
from tests.families import make_llm

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def without_prefix(name: str) -> str:
    return name.removeprefix("model.")


def head_alone(name: str) -> str:
    return HEAD if name == EMBEDDING else name


def as_it_is(name: str) -> str:
    return name


# family, and what its files call a tensor that save_pretrained calls so
CASES = {
    "Mixtral": ("Mixtral", as_it_is),
    "GPT-NeoX": ("GPT-NeoX", as_it_is),
    "no prefix": ("Llama", without_prefix),
    "GPT-2, no prefix": ("GPT-2", lambda name: name.removeprefix("transformer.")),
    "head alone": ("Llama, tied", head_alone),
}


def store(folder, family: str, rename: Callable[[str], str]):
    """A model's folder, whose files have names of their own."""
    make_llm(family).save_pretrained(folder)
    tensors = {rename(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


@pytest.mark.parametrize("case", CASES)
def test_a_stored_tensor_is_known_by_the_name_that_the_model_loads_it_under(tmp_path, case):
    stored = store(tmp_path / "llm", *CASES[case])
    llm = load_llm(str(tmp_path / "llm"), dtype=torch.float32)
    parameters = dict(llm.named_parameters())
    names = model_names(build_meta_llm(str(tmp_path / "llm")), stored)
    assert set(names.values()) <= set(parameters)
    assert any(stored_name != name for stored_name, name in names.items())
    for stored_name, name in names.items():
        assert torch.equal(stored[stored_name], parameters[name]), stored_name
    # the rest is fused on loading
    assert all(".experts." in name for name in set(stored) - set(names))


@pytest.mark.parametrize("case", CASES)
def test_what_a_scan_of_the_files_chose_is_what_trains(tmp_path, case):
    stored = store(tmp_path / "llm", *CASES[case])
    llm = load_llm(str(tmp_path / "llm"), dtype=torch.float32)
    chosen = {name: tuple(tensor.shape) for name, tensor in stored.items() if tensor.dim() == 2 and ".experts." not in name}
    trained = unfreeze(llm, rename_shapes(llm, chosen))
    assert len(trained) == len(chosen)
    # also by the model's own names
    assert unfreeze(llm, rename_shapes(llm, {name: llm.get_parameter(name).shape for name in trained})) == trained


def export_trained(folder, trained: dict[str, torch.Tensor]) -> None:
    """Put `trained` into the model at `folder`/llm, and export it to `folder`/export."""
    difference = folder / "difference"
    difference.mkdir()
    save_file({**trained, "adaptor.scale": torch.ones(2)}, difference / TRAINED_FILE)
    adaptor = {"encoder_width": 16, "llm_width": 32, "width": 32, "num_heads": 4, "stacking": 4, "dropout": 0.0}
    parts = {"encoder": "tiny", "pad_to_30s": False, "instruction": "Hear.", "dtype": "float32", "encoder_dtype": "float32"}
    origin = {"llm": str(folder / "llm"), "checkpoint_digest": open_checkpoint(folder / "llm").digest}
    content = {"schema_version": 1, **parts, "adaptor": {**adaptor, "embedding_std": 1.0}, "base": origin}
    (difference / SPEECH_FILE).write_text(json.dumps(content))
    export(difference, folder / "export")


@pytest.mark.parametrize("case", CASES)
def test_what_was_trained_goes_back_under_the_files_names(tmp_path, home, case):
    from transformers import AutoTokenizer

    stored = store(tmp_path / "llm", *CASES[case])
    AutoTokenizer.from_pretrained(home / "llm").save_pretrained(tmp_path / "llm")
    names = model_names(build_meta_llm(str(tmp_path / "llm")), stored)
    chosen = [name for name, model_name in names.items() if stored[name].dim() == 2 and name != model_name][:2]
    trained = {f"llm.{names[name]}": torch.randn_like(stored[name]) for name in chosen}
    export_trained(tmp_path, trained)
    written = load_file(tmp_path / "export/model.safetensors")
    assert set(written) == set(stored)
    for name, tensor in written.items():
        assert torch.equal(tensor, trained[f"llm.{names[name]}"] if name in chosen else stored[name]), name
    # and is loaded from there
    again = load_llm(str(tmp_path / "export"), dtype=torch.float32)
    assert all(torch.equal(again.get_parameter(names[name]), trained[f"llm.{names[name]}"]) for name in chosen)


@pytest.mark.parametrize(
    ("rename", "unknown"),
    [(lambda name: name.replace("up_proj", "upward"), "model.layers.0.mlp.upward"), (lambda name: name, None)],
)
def test_a_model_whose_files_lack_tensors_is_refused_and_not_drawn_at_random(tmp_path, rename, unknown):
    stored = store(tmp_path / "llm", "Llama", rename)
    if unknown is None:
        kept = {name: tensor for name, tensor in stored.items() if "layers.1.mlp.up_proj" not in name}
        save_file(kept, tmp_path / "llm/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks . of LlamaForCausalLM's tensors .*mlp\.up_proj") as refused:
        load_llm(str(tmp_path / "llm"), dtype=torch.float32)
    assert unknown is None or unknown in str(refused.value)


def test_a_tensor_is_read_by_each_of_its_names(tmp_path):
    stored = store(tmp_path / "llm", *CASES["no prefix"])
    base = open_checkpoint(tmp_path / "llm").also_named({"embed_tokens.weight": EMBEDDING})
    assert torch.equal(read_base(base, EMBEDDING), stored["embed_tokens.weight"])
    assert torch.equal(read_base(base, "embed_tokens.weight"), stored["embed_tokens.weight"])


def test_an_expert_of_a_tensor_that_is_stored_fused_is_known_by_the_models_name_of_the_tensor(tmp_path):
    """Granite's files have `input_linear.weight`, the model `experts.gate_up_proj`."""
    stored = store(tmp_path / "llm", "Granite-MoE", as_it_is)
    fused = [name for name, tensor in stored.items() if tensor.dim() == 3]
    llm = build_meta_llm(str(tmp_path / "llm"))
    own = model_names(llm, fused)
    assert own
    assert not set(own) & {name for name, _ in llm.named_parameters()}
    chosen = {f"{name}[2]": tuple(stored[name].shape[1:]) for name in own}
    assert rename_shapes(llm, chosen) == {f"{own[name]}[2]": tuple(stored[name].shape[1:]) for name in own}


@pytest.mark.parametrize("family", ["Mixtral", "Qwen3-MoE", "OLMoE", "gpt-oss", "Granite-MoE"])
@pytest.mark.parametrize("fused", [False, True])
def test_single_experts_go_back_into_the_files_and_every_other_bit_stays(tmp_path, home, family, fused):
    from transformers import AutoTokenizer

    make_llm(family).save_pretrained(tmp_path / "llm", save_original_format=not fused)
    AutoTokenizer.from_pretrained(home / "llm").save_pretrained(tmp_path / "llm")
    stored = load_file(tmp_path / "llm/model.safetensors")
    # as a scan names them
    chosen = {name: tensor.shape for name, tensor in stored.items() if "experts.2." in name}
    chosen |= {f"{name}[{e}]": t.shape[1:] for name, t in stored.items() if t.dim() == 3 for e in (1, 3)}
    assert chosen
    llm = load_llm(str(tmp_path / "llm"), dtype=torch.float32)
    shapes = rename_shapes(llm, chosen)
    unfreeze(llm, shapes)
    for each in list_trained(llm):
        with torch.no_grad():
            each.parameter.add_(torch.randn(each.parameter.shape))
    trained = {f"llm.{name}": t.clone() for each in list_trained(llm) for name, t in each.split(each.parameter.detach())}
    assert set(trained) == {f"llm.{name}" for name in shapes}
    export_trained(tmp_path, trained)
    written = load_file(tmp_path / "export/model.safetensors")
    assert {name: tensor.shape for name, tensor in written.items()} == {name: tensor.shape for name, tensor in stored.items()}
    expected = {name: tensor.clone() for name, tensor in stored.items()}
    for name, own in zip(chosen, shapes, strict=True):
        tensor, expert = split_expert(name)
        (expected[tensor] if expert is None else expected[tensor][expert]).copy_(trained[f"llm.{own}"])
    for name, tensor in written.items():
        assert torch.equal(tensor, expected[name]), name
    # transformers loads it, and it computes what was trained; so does the base with these experts put into it
    ids = torch.arange(9)[None]
    with torch.no_grad():
        logits = llm(ids).logits
        again = load_llm(str(tmp_path / "export"), dtype=torch.float32)(ids).logits
        torch.testing.assert_close(again, logits, rtol=0, atol=1e-5)
    shape = AdaptorShape(16, 32, 32, 4, 4, 0.0, 1.0)
    adaptor = {f"adaptor.{name}": tensor for name, tensor in build_adaptor(shape, seed=0).state_dict().items()}
    model = load_trained_model(str(tmp_path / "llm"), shape, {**trained, **adaptor}, dtype=torch.float32)
    # a mapped tensor lies otherwise in memory, by which a product's sums may be rounded otherwise
    torch.testing.assert_close(model.llm(ids).logits, logits, rtol=0, atol=1e-5)
    with base_weights(model):
        assert not torch.allclose(model.llm(ids).logits, logits, atol=1e-3)
