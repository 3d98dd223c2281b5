"""Selections for other tools, read back by them if they can be installed."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
import yaml

from kappaspeech.commands import main
from kappaspeech.errors import SelectionError
from kappaspeech.model.llm import load_llm
from kappaspeech.scan.checkpoint import open_checkpoint
from kappaspeech.scan.stage import scan
from kappaspeech.selection.exports import EXPORTS, axolotl, kappatune, names, peft, write_export
from kappaspeech.selection.tensor_selection import SelectedTensor, TensorSelection

SELECTION = TensorSelection(
    rule="by hand",
    model="m",
    checkpoint_digest="c",
    ranking_digest="r",
    tensors=(
        SelectedTensor("model.layers.1.mlp.up_proj.weight", (48, 32), 3.5),
        SelectedTensor("model.layers.0.mlp.experts.down_proj", (4, 32, 16), math.inf),
    ),
)


def test_names_are_a_plain_list():
    assert names(SELECTION).splitlines() == list(SELECTION.names)


def test_axolotl_unfreezes_exactly_these():
    patterns = yaml.safe_load(axolotl(SELECTION))["unfrozen_parameters"]
    candidates = [
        *SELECTION.names,
        "model.layers.11.mlp.up_proj.weight",
        "model.layers.1.mlp.up_projxweight",
        "x." + SELECTION.names[0],
    ]
    assert [name for name in candidates if any(re.match(pattern, name) for pattern in patterns)] == list(SELECTION.names)


def test_kappatune_reads_kappas_back_infinite_ones_too():
    assert json.loads(kappatune(SELECTION)) == {tensor.name: tensor.kappa for tensor in SELECTION.tensors}


def test_peft_tells_modules_from_fused_parameters():
    assert json.loads(peft(SELECTION)) == {
        "target_modules": ["model.layers.1.mlp.up_proj"],
        "target_parameters": ["model.layers.0.mlp.experts.down_proj"],
    }


def test_peft_itself_adapts_exactly_the_selection(home):
    import peft as library

    selection = TensorSelection.read(home / "selection.json")
    config = library.LoraConfig(r=2, **json.loads(peft(selection)))
    adapted = library.get_peft_model(load_llm(str(home / "llm"), dtype=torch.float32), config)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    modules = {re.sub(r"\.lora_(embedding_)?[AB].*", "", name).removeprefix("base_model.model.") for name in trained}
    assert modules == {name.removesuffix(".weight") for name in selection.names}


def test_select_writes_every_format_beside_the_selection(home, tmp_path, capsys):
    words = ["select", str(home / "ranking.json"), "--count", "2", "--output", str(tmp_path / "s.json")]
    assert main([*words, *(word for kind in EXPORTS for word in ("--export", kind))]) == 0
    expected = {"s.json", "s.names.txt", "s.peft.json", "s.axolotl.yaml", "s.condition_numbers.json"}
    assert {path.name for path in tmp_path.iterdir()} == expected
    printed = capsys.readouterr().out
    assert all(str(tmp_path / name) in printed for name in expected)


def of_gguf(*found: str, family: str | None = "llama") -> TensorSelection:
    tensors = tuple(SelectedTensor(name, (4, 4), 2.0) for name in found)
    return TensorSelection("by hand", "m.gguf", "c", "r", tensors, gguf_architecture=family)


def test_a_selection_from_a_gguf_is_exported_by_transformers_names(tmp_path):
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    selection = of_gguf("token_embd.weight", *(f"blk.3.{part}.weight" for part in parts))
    path = write_export(selection, "names", tmp_path / "s.json")
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        llm = LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, hidden_size=32, intermediate_size=48, vocab_size=64))
    written = path.read_text().splitlines()
    assert len(written) == 8
    assert set(written) <= {name for name, _ in llm.named_parameters()}


def test_a_gguf_tensor_that_transformers_fuses_is_refused(tmp_path):
    with pytest.raises(SelectionError, match=r"blk\.3\.ffn_gate_exps\.weight is GGUF's name"):
        write_export(of_gguf("blk.3.ffn_gate_exps.weight"), "peft", tmp_path / "s.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("family", "says"), [("phi3", "of the family phi3"), ("gpt2", "family gpt2"), ("glm4", "glm4"), (None, "of which family")]
)
@pytest.mark.parametrize("name", ["blk.3.ffn_up.weight", "token_embd.weight"])
def test_a_gguf_of_a_family_with_other_modules_is_refused(tmp_path, family, says, name):
    with pytest.raises(SelectionError, match=says):
        write_export(of_gguf(name, family=family), "peft", tmp_path / "s.json")
    assert list(tmp_path.iterdir()) == []


def test_the_embedding_alone_is_renamed_too(tmp_path):
    assert write_export(of_gguf("token_embd.weight"), "names", tmp_path / "s.json").read_text() == "model.embed_tokens.weight\n"


def test_a_gguf_family_reaches_the_selection_through_its_ranking(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen2")
    writer.add_tensor("blk.0.ffn_up.weight", np.eye(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    scan(open_checkpoint(tmp_path / "m.gguf")).write(tmp_path / "ranking.json")
    assert main(["select", str(tmp_path / "ranking.json"), "--count", "1", "--output", str(tmp_path / "s.json")]) == 0
    assert TensorSelection.read(tmp_path / "s.json").gguf_architecture == "qwen2"
