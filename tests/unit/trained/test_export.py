"""The base's files with trained tensors in their places: by streams of bytes, whatever the base's files are."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from kappaspeech.errors import CheckpointError
from kappaspeech.scan.checkpoint import open_checkpoint
from kappaspeech.trained.merged_files import INDEX_NAME, list_output, write_merged

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def make_base(folder, *, dtype=torch.bfloat16, suffix=".safetensors", config=None, **more):
    """A base of three tensors; returns what it holds."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(1)
    tensors = {name: torch.randn(6, 4, generator=generator).to(dtype) for name in (EMBEDDING, "a.weight", "b.weight")} | more
    if suffix == ".bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config or {}))
    return tensors


def merge(folder, trained, *, dtype=torch.bfloat16, **options):
    """Write what `folder` and `trained` make together, and read it back."""
    base = open_checkpoint(folder)
    planned = list_output(base, {name: tuple(tensor.shape) for name, tensor in trained.items()}, dtype=dtype)
    target = folder.with_name("merged")
    target.mkdir()
    write_merged(target, base, planned, read_trained=trained.__getitem__, **options)
    return {name: tensor for file in sorted(target.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def same_bytes(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return ours.dtype == theirs.dtype and torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_frozen_tensors_keep_their_bytes_and_trained_ones_are_rounded(tmp_path, suffix):
    # a NaN, a number kept in float32, and integers: none is touched
    odd = {"c.weight": torch.full((3, 2), torch.nan, dtype=torch.bfloat16), "d.bias": torch.randn(5), "e": torch.arange(3)}
    base = make_base(tmp_path / "base", suffix=suffix, **odd)
    trained = {"b.weight": torch.randn(6, 4)}
    merged = merge(tmp_path / "base", trained)
    assert set(merged) == set(base)
    assert all(same_bytes(merged[name], base[name]) for name in base if name != "b.weight")
    assert torch.equal(merged["b.weight"], trained["b.weight"].bfloat16())


def test_a_float32_base_is_written_as_the_training_saw_it(tmp_path):
    base = make_base(tmp_path / "base", dtype=torch.float32)
    merged = merge(tmp_path / "base", {})
    assert merged.keys() == base.keys()
    assert {tensor.dtype for tensor in base.values()} == {torch.float32}
    assert all(same_bytes(merged[name], base[name].bfloat16()) for name in base)


def test_a_head_stored_beside_the_embedding_that_it_is_tied_to_is_replaced_with_it(tmp_path):
    head = {HEAD: torch.zeros(6, 4, dtype=torch.bfloat16), EMBEDDING: torch.zeros(6, 4, dtype=torch.bfloat16)}
    make_base(tmp_path / "base", config={"tie_word_embeddings": True}, **head)
    trained = {EMBEDDING: torch.ones(6, 4)}
    merged = merge(tmp_path / "base", trained)
    assert torch.equal(merged[EMBEDDING], merged[HEAD])
    assert torch.equal(merged[HEAD], torch.ones(6, 4, dtype=torch.bfloat16))


def test_a_large_model_is_cut_into_files_with_an_index(tmp_path):
    base = make_base(tmp_path / "base")
    merged = merge(tmp_path / "base", {}, max_file_bytes=100)
    index = json.loads((tmp_path / "merged" / INDEX_NAME).read_text())
    assert index["weight_map"] == {
        "a.weight": "model-00001-of-00002.safetensors",
        "b.weight": "model-00001-of-00002.safetensors",
        EMBEDDING: "model-00002-of-00002.safetensors",
    }
    assert index["metadata"]["total_size"] == 3 * 48
    assert all(same_bytes(merged[name], base[name]) for name in base)


def test_what_does_not_fit_the_base_is_refused_by_name(tmp_path):
    make_base(tmp_path / "base")
    base = open_checkpoint(tmp_path / "base")
    for trained, there in (({"z.weight": (6, 4)}, "absent"), ({"a.weight": (4, 6)}, r"\(6, 4\)")):
        with pytest.raises(CheckpointError, match=there):
            list_output(base, trained, dtype=torch.bfloat16)


def test_codes_that_need_scales_are_refused(tmp_path):
    make_base(tmp_path / "base", **{"c.weight": torch.zeros(4, 4, dtype=torch.float8_e4m3fn)})
    with pytest.raises(CheckpointError, match="quantised base"):
        list_output(open_checkpoint(tmp_path / "base"), {}, dtype=torch.bfloat16)
