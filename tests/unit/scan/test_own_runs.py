"""A run of this project's own as a checkpoint: what its export would hold."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kappaspeech.errors import CheckpointError
from kappaspeech.model.lora import LoraShape, factors_of, merge
from kappaspeech.scan.checkpoint import open_checkpoint
from kappaspeech.scan.matrices import list_matrices
from kappaspeech.tensor_files.dtypes import widen
from tests.families import make_llm

PLAIN, FUSED, OTHER = (
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.0.mlp.experts.down_proj",
    "model.layers.1.mlp.up_proj.weight",
)
EMBEDDING = "model.embed_tokens.weight"
LORA = LoraShape(rank=2, alpha=4.0, dropout=0.0)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make_base(folder, **config):
    folder.mkdir()
    tensors = {
        EMBEDDING: draw(30, 12, dtype=torch.bfloat16),
        PLAIN: draw(1100, 12, seed=1, dtype=torch.bfloat16),
        FUSED: draw(3, 10, 8, seed=2, dtype=torch.bfloat16),
        OTHER: draw(20, 12, seed=3, dtype=torch.bfloat16),
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return tensors


def make_run(folder, base, trained, *, average=None, **record):
    step = folder / "checkpoints" / "step-000010"
    step.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model": {"llm": str(base)}}))
    (folder / "run.json").write_text(json.dumps(record))
    for name, tensors in (("trained", trained), ("average", average)):
        if tensors is not None:
            save_file(
                {f"llm.{key}": value for key, value in tensors.items()} | {"adaptor.w": draw(3, 3)}, step / f"{name}.safetensors"
            )
    return folder


def read_all(checkpoint, name) -> np.ndarray:
    shape = checkpoint.shape_of(name)
    return widen(checkpoint.read(name, 0, int(np.prod(shape))), checkpoint.dtype_of(name)).reshape(shape)


@pytest.mark.parametrize("transposed", [(), (FUSED,)])
def test_lora_is_merged_as_the_export_merges_it_and_its_factors_are_no_tensors(tmp_path, transposed):
    lora = LoraShape(LORA.rank, LORA.alpha, LORA.dropout, transposed)
    base = make_base(tmp_path / "base")
    out, into = (8, 10) if transposed else (10, 8)
    pairs = {PLAIN: (draw(2, 12, seed=4), draw(1100, 2, seed=5)), FUSED: (draw(6, into, seed=6), draw(out, 6, seed=7))}
    factors = {factor: tensor for name, pair in pairs.items() for factor, tensor in zip(factors_of(name), pair, strict=True)}
    run = make_run(tmp_path / "run", tmp_path / "base", factors, lora=asdict(lora), dtype="bfloat16")
    checkpoint = open_checkpoint(run)
    assert [ref.name for ref in checkpoint.tensors] == sorted(base)
    matrices, _ = list_matrices(checkpoint)
    assert {ref.tensor.name for ref in matrices} == set(base)
    for name in (PLAIN, FUSED):
        expected = merge(name, base[name], factors, lora).to(torch.bfloat16).double().numpy()
        np.testing.assert_allclose(read_all(checkpoint, name), expected, rtol=2**-7)
        assert not np.array_equal(read_all(checkpoint, name), base[name].double().numpy())
        whole = checkpoint.read(name, 0, expected.size)
        across = (511 * 12, 513 * 12) if name == PLAIN else (79, 161)
        for start, stop in ((0, 5), across, (37, 201), (expected.size - 3, expected.size)):
            np.testing.assert_array_equal(checkpoint.read(name, start, stop), whole[start:stop])
            assert (
                checkpoint.read_bytes(name, 2 * start + 1, 2 * (stop - start) - 2)
                == whole.tobytes()[2 * start + 1 : 2 * stop - 1]
            )
    np.testing.assert_array_equal(read_all(checkpoint, OTHER), base[OTHER].double().numpy())


def test_the_moving_average_counts_where_a_run_kept_one(tmp_path):
    make_base(tmp_path / "base")
    last, average = draw(20, 12, seed=8), draw(20, 12, seed=9)
    run = make_run(tmp_path / "run", tmp_path / "base", {OTHER: last}, average={OTHER: average}, dtype="bfloat16")
    np.testing.assert_array_equal(read_all(open_checkpoint(run), OTHER), average.bfloat16().double().numpy())


def test_a_tied_tensor_is_replaced_under_all_of_its_names(tmp_path):
    make_base(tmp_path / "base", tie_word_embeddings=True)
    run = make_run(tmp_path / "run", tmp_path / "base", {EMBEDDING: draw(30, 12, seed=8)})
    checkpoint = open_checkpoint(run)
    found = next(ref for ref in checkpoint.tensors if ref.name == EMBEDDING)
    assert (found.aliases, found.dtype) == (("lm_head.weight",), "float32")
    assert len(checkpoint.tensors) == 4


@pytest.mark.parametrize(
    ("trained", "record", "says"),
    [
        ({"model.nowhere.weight": draw(4, 4)}, {}, "absent"),
        ({PLAIN: draw(4, 4)}, {}, "doesn't fit"),
        (dict(zip(factors_of(PLAIN), (draw(2, 12), draw(1100, 2)), strict=True)), {}, "lora_A"),
        (dict(zip(factors_of("model.gone.weight"), (draw(2, 12), draw(9, 2)), strict=True)), {"lora": asdict(LORA)}, "gone"),
        ({OTHER: draw(20, 12)}, {"checkpoint_digest": "0" * 64}, "put back"),
        ({OTHER: draw(20, 12)}, {"dtype": 5}, "dtype"),
        ({OTHER: draw(20, 12)}, {"lora": []}, r"run\.json"),
    ],
)
def test_what_does_not_fit_its_base_is_refused(tmp_path, trained, record, says):
    make_base(tmp_path / "base")
    run = make_run(tmp_path / "run", tmp_path / "base", trained, **record)
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint(run)


@pytest.mark.parametrize("family, prefix", [("GPT-2", "transformer."), ("BLOOM", "transformer."), ("Llama", "model.")])
def test_a_run_is_scanned_whose_base_has_other_names_in_its_files_than_in_the_model(tmp_path, family, prefix):
    """As the hub's GPT-2 and BLOOM have."""
    folder = tmp_path / "base"
    make_llm(family).save_pretrained(folder)
    stored = {name.removeprefix(prefix): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    name = next(name for name, tensor in stored.items() if tensor.dim() == 2 and ".0." in name)
    after = draw(*stored[name].shape, seed=8)
    run = make_run(tmp_path / "run", folder, {f"{prefix}{name}": after}, dtype="float32")
    checkpoint = open_checkpoint(run)
    assert {ref.name for ref in checkpoint.tensors} <= set(stored)
    np.testing.assert_array_equal(read_all(checkpoint, name), after.double().numpy())
    factors = dict(zip(factors_of(f"{prefix}{name}"), (draw(2, after.shape[1]), draw(after.shape[0], 2, seed=1)), strict=True))
    adapted = make_run(tmp_path / "lora", folder, factors, lora=asdict(LORA), dtype="float32")
    expected = merge(f"{prefix}{name}", stored[name], factors, LORA).double().numpy()
    np.testing.assert_allclose(read_all(open_checkpoint(adapted), name), expected, rtol=1e-6, atol=1e-6)


def test_single_experts_that_a_run_trained_are_read_in_their_tensor_and_the_others_as_they_were(tmp_path):
    base = make_base(tmp_path / "base")
    last = {f"{FUSED}[2]": draw(10, 8, seed=8), f"{FUSED}[0]": draw(10, 8, seed=9)}
    checkpoint = open_checkpoint(make_run(tmp_path / "run", tmp_path / "base", last, dtype="bfloat16"))
    expected = base[FUSED].clone()
    expected[2], expected[0] = (last[f"{FUSED}[{expert}]"].bfloat16() for expert in (2, 0))
    np.testing.assert_array_equal(read_all(checkpoint, FUSED), expected.double().numpy())
    whole = checkpoint.read(FUSED, 0, expected.numel())
    for start, stop in ((0, 5), (79, 161), (85, 90), (238, 240)):
        np.testing.assert_array_equal(checkpoint.read(FUSED, start, stop), whole[start:stop])
    assert [ref.name for ref in checkpoint.tensors] == sorted(base)
    assert {ref.name for ref in list_matrices(checkpoint)[0]} >= {f"{FUSED}[{expert}]" for expert in range(3)}


@pytest.mark.parametrize("wrong", [{f"{FUSED}[3]": draw(10, 8)}, {f"{FUSED}[1]": draw(8, 10)}, {"model.gone[0]": draw(10, 8)}])
def test_an_expert_that_the_base_lacks_is_refused(tmp_path, wrong):
    make_base(tmp_path / "base")
    with pytest.raises(CheckpointError, match="is no expert of"):
        open_checkpoint(make_run(tmp_path / "run", tmp_path / "base", wrong, dtype="bfloat16"))


def test_a_run_whose_base_is_itself_is_refused(tmp_path):
    run = make_run(tmp_path / "run", tmp_path / "run", {OTHER: draw(20, 12)})
    with pytest.raises(CheckpointError, match="a run itself"):
        open_checkpoint(run)
