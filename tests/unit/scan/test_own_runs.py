"""A run of this project's own as a checkpoint: what its export would hold."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from kappaspeech.errors import CheckpointError
from kappaspeech.model.lora import LoraShape, factors_of, merge
from kappaspeech.scan.checkpoint import open_checkpoint
from kappaspeech.scan.matrices import list_matrices
from kappaspeech.tensor_files.dtypes import widen
from safetensors.torch import save_file

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


def test_a_run_whose_base_is_itself_is_refused(tmp_path):
    run = make_run(tmp_path / "run", tmp_path / "run", {OTHER: draw(20, 12)})
    with pytest.raises(CheckpointError, match="a run itself"):
        open_checkpoint(run)
