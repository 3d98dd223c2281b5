"""The files of a folder that count as the model, and those that are refused before anything is read."""

from __future__ import annotations

import json
import os
import struct
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kappaspeech.errors import CheckpointError
from kappaspeech.model.config_limits import check_size
from kappaspeech.scan.checkpoint import open_checkpoint
from kappaspeech.scan.matrices import list_matrices
from kappaspeech.tensor_files.safetensors_file import SafetensorsFile
from kappaspeech.tensor_files.weight_files import read_config

NAME = "model.layers.0.mlp.up_proj.weight"


def save(path, value: float, name: str = NAME):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.full((4, 6), value)}, path)


def save_index(folder, files: list) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {f"t{n}": f for n, f in enumerate(files)}}))


def first_value(where) -> float:
    return float(open_checkpoint(where).read(NAME, 0, 1)[0])


def test_of_a_whole_file_and_an_index_the_one_counts_that_transformers_loads(tmp_path, caplog):
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, vocab_size=16
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    LlamaForCausalLM(config).save_pretrained(tmp_path, max_shard_size="1KB")
    (tmp_path / "model.safetensors").write_bytes(whole)
    assert (tmp_path / "model.safetensors.index.json").exists()
    loaded = dict(AutoModelForCausalLM.from_pretrained(tmp_path).named_parameters())[NAME]
    ours = open_checkpoint(tmp_path).read(NAME, 0, loaded.numel())
    np.testing.assert_array_equal(ours, loaded.detach().flatten().numpy())
    assert "model.safetensors is used, as transformers does" in caplog.text


def test_an_index_of_the_whole_file_itself_is_no_second_set(tmp_path, caplog):
    save(tmp_path / "model.safetensors", 1.0)
    save_index(tmp_path, ["model.safetensors"])
    assert first_value(tmp_path) == 1.0
    assert not caplog.text


def test_a_file_that_the_config_names_counts(tmp_path):
    save(tmp_path / "model.safetensors", 1.0)
    save(tmp_path / "other.safetensors", 2.0)
    (tmp_path / "config.json").write_text(json.dumps({"transformers_weights": "other.safetensors"}))
    assert first_value(tmp_path) == 2.0
    (tmp_path / "config.json").write_text(json.dumps({"transformers_weights": "../other.safetensors"}))
    with pytest.raises(CheckpointError, match="within its folder"):
        open_checkpoint(tmp_path)


def test_pytorch_files_come_before_what_transformers_would_not_load(tmp_path):
    torch.save({NAME: torch.ones(4, 6)}, tmp_path / "pytorch_model.bin")
    save(tmp_path / "consolidated.safetensors", 2.0, "layers.0.feed_forward.w1.weight")
    assert first_value(tmp_path) == 1.0


def test_consolidated_files_beside_pieces_are_two_models(tmp_path):
    save(tmp_path / "consolidated.safetensors", 2.0, "layers.0.feed_forward.w1.weight")
    for number in (1, 2):
        save(tmp_path / f"model-{number:05d}-of-00002.safetensors", 1.0, f"{NAME}{number}")
    with pytest.raises(CheckpointError, match="more than one set of weights"):
        open_checkpoint(tmp_path)
    (tmp_path / "consolidated.safetensors").unlink()
    assert len(open_checkpoint(tmp_path).tensors) == 2
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="piece 1 is missing"):
        open_checkpoint(tmp_path)


def test_a_folder_for_which_transformers_would_load_another_is_refused(tmp_path):
    save(tmp_path / "adapter_model.safetensors", 1.0, f"base_model.model.{NAME}")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="PEFT adapter"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["../outside.safetensors"], "within its folder"),
        (["/etc/passwd"], "within its folder"),
        (["a/../../outside.safetensors"], "within its folder"),
        (["a\0.safetensors"], "within its folder"),
        ([""], "within its folder"),
        (["a" * 5000 + ".safetensors"], "too long"),
        ([5], "no weight_map"),
        ([None], "no weight_map"),
        ([["x"]], "no weight_map"),
        ([], "no weight_map"),
    ],
)
def test_an_index_that_leads_elsewhere_or_nowhere_is_refused(tmp_path, names, says):
    folder = tmp_path / "model"
    folder.mkdir()
    save(tmp_path / "outside.safetensors", 1.0)
    save_index(folder, names)
    with pytest.raises(CheckpointError, match=says) as caught:
        open_checkpoint(folder)
    assert "index.json" in str(caught.value)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"weight_map": [1]}', "[1]", '{"weight_map": {"a": ' + "1" * 5000 + "}}"])
def test_an_index_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="no index"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["null", "[]", '"x"', "{}"])
def test_a_config_with_an_odd_text_part_ties_nothing(tmp_path, text):
    save(tmp_path / "model.safetensors", 1.0)
    (tmp_path / "config.json").write_text(f'{{"text_config": {text}}}')
    assert first_value(tmp_path) == 1.0


def test_a_config_is_read_with_infinity_and_refused_where_it_is_none(tmp_path):
    (tmp_path / "config.json").write_text('{"time_step_limit": [0.0, Infinity]}')
    assert read_config(tmp_path)
    for content in ("[" * 100_000, '{"a": ' + "1" * 5000 + "}", "\x00"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            read_config(tmp_path)


def test_a_config_of_ten_million_layers_is_not_built():
    from transformers import LlamaConfig

    check_size("x", LlamaConfig())
    for name in ("num_hidden_layers", "hidden_size", "vocab_size"):
        with pytest.raises(CheckpointError, match=name):
            check_size("x", LlamaConfig(**{name: 10**9, "num_attention_heads": 1, "num_key_value_heads": 1}))


def write_safetensors(path, header: bytes, data: bytes = bytes(24)) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def entry(**changes) -> bytes:
    return json.dumps({"a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **changes}}).encode()


@pytest.mark.parametrize(
    "header",
    [
        entry(shape=[-2, -3]),
        entry(shape=[-1, 6], data_offsets=[24, 0]),
        entry(shape=[2.9, 3]),
        entry(shape="23"),
        entry(shape=[True, 6]),
        entry(shape=None),
        entry(data_offsets=[0, 12, 24]),
        entry(data_offsets=[-24, 0]),
        entry(dtype="F4", data_offsets=[10**30, 0]),
        entry(dtype="F4", data_offsets=[40, 24]),
        entry(dtype=["F32"]),
        entry(dtype=None),
        b'{"a.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,Infinity]}}',
        b'{"a.weight":{"dtype":"F32","shape":[1e400,3],"data_offsets":[0,24]}}',
        b'{"a.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[NaN,24]}}',
        b'{"a.weight":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"a.weight":{"dtype":"F32","shape":[3,2],"data_offsets":[0,24]}}',
        b'{"a.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[8,24]}}',
        b"[1, 2]",
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header):
    write_safetensors(tmp_path / "model.safetensors", header)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        open_checkpoint(tmp_path)


def test_a_pipe_and_a_device_in_place_of_weights_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    (tmp_path / "m.pt").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "m.gguf")
    for where in (tmp_path, tmp_path / "m.pt", tmp_path / "m.gguf"):
        with pytest.raises(CheckpointError, match="no file with an end"):
            open_checkpoint(where)


def test_a_download_that_was_never_written_is_told_from_weights(tmp_path):
    rows, columns = 12_000, 30_000_000
    path = tmp_path / "model.safetensors"
    write_safetensors(path, entry(shape=[rows, columns], data_offsets=[0, rows * columns * 4]), b"")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + rows * columns * 4)
    with pytest.raises(CheckpointError, match="hole"):
        open_checkpoint(tmp_path)


def gguf_file(path, tensors: dict, *, number: int = 0, count: int = 1):
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    if count > 1:
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
    writer.add_array("tokens", ["a", "b"])
    for name, (values, kind) in tensors.items():
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_any_piece_of_a_split_gguf_and_its_folder_are_the_whole_model(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(2):
        tensors = {f"blk.{number}.attn_q.weight": (rng.normal(size=(8, 32)).astype("f4"), None)}
        gguf_file(tmp_path / f"m-{number + 1:05d}-of-00002.gguf", tensors, number=number, count=2)
    wholes = [open_checkpoint(where) for where in (tmp_path, *sorted(tmp_path.glob("*.gguf")))]
    assert [[ref.name for ref in each.tensors] for each in wholes] == [["blk.0.attn_q.weight", "blk.1.attn_q.weight"]] * 3
    assert len({each.digest for each in wholes}) == 1
    (tmp_path / "m-00001-of-00002.gguf").rename(tmp_path / "m-00001-of-00002.gguf.part")
    for where in (tmp_path, tmp_path / "m-00002-of-00002.gguf"):
        with pytest.raises(CheckpointError, match=r"missing|aren't beside"):
            open_checkpoint(where)
    (tmp_path / "m-00002-of-00002.gguf").rename(tmp_path / "second.gguf")
    with pytest.raises(CheckpointError, match="one of 2 pieces"):
        open_checkpoint(tmp_path / "second.gguf")


@pytest.mark.parametrize("kind", ["Q8_K", "Q8_1"])
def test_gguf_kinds_that_nothing_decodes_are_refused_by_name(tmp_path, kind):
    import gguf

    number = getattr(gguf.GGMLQuantizationType, kind)
    block, size = gguf.GGML_QUANT_SIZES[number]
    raw = np.zeros((4, 512 // block * size), np.uint8)
    path = gguf_file(tmp_path / "m.gguf", {"a.weight": (raw, number), "b.weight": (np.ones((4, 8), "f4"), None)})
    matrices, skipped = list_matrices(open_checkpoint(path))
    assert [ref.name for ref in matrices] == ["b.weight"]
    assert (skipped[0].name, kind.lower() in skipped[0].reason) == ("a.weight", True)


def test_a_torch_file_of_other_than_dense_numbers_is_listed_and_its_weights_are_ranked(tmp_path):
    dense = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        odd = {
            "coo.weight": torch.eye(4).to_sparse(),
            "csr.weight": torch.eye(4).to_sparse_csr(),
            "meta.weight": torch.empty(4, 6, device="meta"),
            "quantised.weight": torch.quantize_per_tensor(dense, 0.1, 0, torch.qint8),
            "expanded.weight": torch.ones(1).expand(10**6, 10**6),
            "complex.weight": torch.randn(4, 6, dtype=torch.complex64).conj(),
            "e8m0.weight": dense.to(torch.float8_e8m0fnu),
        }
    torch.save({"dense.weight": dense, **odd}, tmp_path / "m.pt")
    checkpoint = open_checkpoint(tmp_path / "m.pt")
    matrices, skipped = list_matrices(checkpoint)
    assert [ref.name for ref in matrices] == ["dense.weight"]
    assert {item.name for item in skipped} == set(odd)
    assert len(checkpoint.digest) == 64


def test_a_torch_archive_that_unpacks_to_gigabytes_is_refused_before_it_does(tmp_path):
    import zipfile

    torch.save({"a.weight": torch.ones(2, 3)}, tmp_path / "m.pt")
    with zipfile.ZipFile(tmp_path / "m.pt") as good, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for item in good.infolist():
            bomb.writestr(item.filename, bytes(100 << 20) if item.filename.endswith("data.pkl") else good.read(item))
    assert (tmp_path / "bomb.pt").stat().st_size < 1 << 20
    with pytest.raises(CheckpointError, match="unpack"):
        open_checkpoint(tmp_path / "bomb.pt")


def test_tensors_that_an_index_names_and_no_file_holds_are_told(tmp_path, caplog):
    save_file({"a.weight": torch.ones(2, 3), "extra.weight": torch.ones(2)}, tmp_path / "model-00001-of-00001.safetensors")
    index = dict.fromkeys(("a.weight", "b.weight"), "model-00001-of-00001.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert [ref.name for ref in open_checkpoint(tmp_path).tensors] == ["a.weight", "extra.weight"]
    (told,) = caplog.messages
    assert "names 1 tensor(s) that no file of it holds (first: b.weight)" in told


def test_bytes_that_come_in_small_parts_are_put_together_and_missing_ones_are_an_error(tmp_path, monkeypatch):
    weight = torch.arange(3000, dtype=torch.int32)
    save_file({"w": weight}, tmp_path / "w.safetensors")
    file = SafetensorsFile(tmp_path / "w.safetensors")
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda descriptor, views, offset: preadv(descriptor, [views[0][:1000]], offset))
    assert file.read_bytes("w", 4, 11_000) == weight.numpy().tobytes()[4:11_004]
    os.truncate(file.path, 9000)
    with pytest.raises(OSError, match="it was cut while it was being read"):
        file.read_bytes("w", 0, 12_000)
