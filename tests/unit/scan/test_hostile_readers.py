"""Any bytes in place of a checkpoint, a ranking or a selection give a result or a sentence, soon and in little memory."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from kappaspeech.scan.checkpoint import open_checkpoint
from kappaspeech.scan.journal import Journal
from kappaspeech.scan.ranking import KappaRanking
from kappaspeech.scan.scores import SCORES
from kappaspeech.scan.stage import scan
from kappaspeech.scan.table import rows
from kappaspeech.selection.rules import Count
from kappaspeech.selection.select import select
from kappaspeech.selection.tensor_selection import TensorSelection
from tests.fuzzing import cuts, damage, edits, fuzzed, json_changes, junk, numbers, texts, try_out, with_changes


@pytest.fixture(autouse=True)
def without_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def scan_it(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    json.dumps([checkpoint.where, *(ref.name for ref in checkpoint.tensors)], ensure_ascii=False).encode()
    scan(checkpoint)


sizes = st.lists(st.one_of(st.integers(0, 9), numbers), max_size=4)
DTYPES = ["F32", "F16", "BF16", "F64", "I8", "U8", "F8_E4M3", "F8_E8M0", "I32", "F4"]
NAMES = ["weight", "weight_scale", "weight_zero_point", "SCB", "weight_format", "qweight", "scales", "experts.w"]
entries = st.one_of(
    st.fixed_dictionaries(
        {
            "dtype": st.one_of(
                st.sampled_from(["F32", "F16", "BF16", "F64", "I8", "U8", "F8_E4M3", "F8_E8M0", "I32", "F4"]), junk
            ),
            "shape": st.one_of(sizes, st.sampled_from([[2, 3], [4, 4], [2, 2, 2], [6]]), junk),
            "data_offsets": st.one_of(st.sampled_from([[0, 24], [0, 6], [24, 40], [0, 48], [0, 0]]), sizes, junk),
        }
    ),
    junk,
)
tensor_names = st.one_of(st.sampled_from([f"a.{name}" for name in NAMES]), texts)


@fuzzed
@given(
    st.dictionaries(tensor_names, entries, max_size=4),
    st.binary(max_size=64),
    st.one_of(st.none(), st.none(), st.integers(0, 2**64 - 1)),
)
def test_safetensors_with_any_header(tmp_path, header, data, length):
    text = json.dumps(header).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    try_out(lambda: scan_it(path))


@fuzzed
@given(
    st.sampled_from(["model.safetensors.index.json", "config.json", "adapter_config.json"]),
    st.one_of(junk, st.binary(max_size=40)),
)
def test_a_folder_with_any_index_and_config(tmp_path, name, content):
    folder = tmp_path / "folder"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    header = json.dumps({"a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    (folder / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(range(24)))
    if not isinstance(content, bytes):
        content = json.dumps({"weight_map": content, "text_config": content, "transformers_weights": content}).encode()
    (folder / name).write_bytes(content)
    try_out(lambda: scan_it(folder))


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory) -> bytes:
    import gguf

    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokens", ["a", "b"])
    writer.add_array("scores", [1.0, 2.0])
    writer.add_tensor("blk.0.attn_q.weight", rng.normal(size=(4, 32)).astype("f4"))
    packed = gguf.quantize(rng.normal(size=(4, 32)).astype("f4"), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.ffn.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@fuzzed
@given(
    edits, cuts, st.lists(st.tuples(st.integers(0, 60), st.sampled_from([2**31, 2**40, 2**62, 2**63, 2**64 - 1, 0])), max_size=1)
)
def test_gguf_with_any_bytes_changed(tmp_path, gguf_bytes, changes, cut, lies):
    content = bytearray(damage(gguf_bytes, [(place * 0.6, value) for place, value in changes], cut))
    for place, value in lies:
        content[place * 4 : place * 4 + 8] = struct.pack("<Q", value)
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    try_out(lambda: scan_it(path))


@pytest.fixture(scope="module")
def torch_bytes() -> bytes:
    import torch

    file = io.BytesIO()
    torch.save({"a.weight": torch.randn(4, 6), "b": {"c": torch.arange(3)}, "d.weight": torch.ones(1).expand(3, 5)}, file)
    return file.getvalue()


@fuzzed
@given(edits, cuts, st.booleans())
def test_torch_files_with_any_bytes_changed(tmp_path, torch_bytes, changes, cut, is_pickle_alone):
    path = tmp_path / "m.pt"
    if is_pickle_alone:
        with zipfile.ZipFile(io.BytesIO(torch_bytes)) as good, zipfile.ZipFile(path, "w") as bad:
            for item in good.infolist():
                content = good.read(item)
                bad.writestr(item.filename, damage(content, changes, cut) if item.filename.endswith("data.pkl") else content)
    else:
        path.write_bytes(damage(torch_bytes, changes, cut))
    try_out(lambda: scan_it(path))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A small ranking and a selection of it."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    tensors = {f"model.layers.{n}.up_proj.weight": rng.normal(size=(6, 4)).astype("f4") for n in range(2)}
    experts = rng.normal(size=(2, 3, 3)).astype("f4")
    save_file({**tensors, "mlp.experts.w": experts, "norm": np.ones(3, "f4")}, folder / "m.safetensors")
    ranking = scan(open_checkpoint(folder / "m.safetensors"), journal=folder / "journal")
    ranking.write(folder / "ranking.json")
    select(ranking, Count(2)).write(folder / "selection.json")
    return folder


@fuzzed
@given(json_changes)
def test_rankings_with_any_value_changed(tmp_path, made, changes):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(with_changes(json.loads((made / "ranking.json").read_text()), changes)))

    def use() -> None:
        ranking = KappaRanking.read(path)
        rows(ranking)
        for score in SCORES:
            select(ranking, Count(1), score=score)
        ranking.write(path)
        assert len(ranking.digest) == 64

    try_out(use)


@fuzzed
@given(json_changes)
def test_selections_with_any_value_changed(tmp_path, made, changes):
    path = tmp_path / "s.json"
    path.write_text(json.dumps(with_changes(json.loads((made / "selection.json").read_text()), changes)))
    try_out(lambda: TensorSelection.read(path).write(path))


@fuzzed
@given(st.binary(max_size=60))
def test_rankings_of_any_bytes(tmp_path, content):
    (tmp_path / "r.json").write_bytes(content)
    try_out(lambda: KappaRanking.read(tmp_path / "r.json"))


@fuzzed
@given(json_changes)
def test_journals_with_any_value_changed(tmp_path, made, changes):
    (kept,) = (made / "journal").glob("*.jsonl")
    first = next(json.loads(line) for line in kept.read_text().splitlines() if line)
    (tmp_path / "a.jsonl").write_text(json.dumps(with_changes(first, changes)) + "\n")
    checkpoint = open_checkpoint(made / "m.safetensors")

    def use() -> None:
        journal = Journal(tmp_path, checkpoint, rtol=1e-6)
        journal.read()
        journal.close()

    try_out(use)


@fuzzed
@given(json_changes, st.sampled_from(["config.json", "run.json"]))
def test_run_folders_with_any_value_changed(tmp_path, made, changes, name):
    folder = tmp_path / "run"
    (folder / "checkpoints" / "step-000001").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints" / "step-000001" / "trained.safetensors").write_bytes((made / "m.safetensors").read_bytes())
    lora = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "transposed": []}
    contents = {
        "config.json": {"model": {"llm": str(made / "m.safetensors")}},
        "run.json": {"dtype": "bfloat16", "checkpoint_digest": None, "lora": lora},
    }
    contents[name] = with_changes(contents[name], changes)
    for key, value in contents.items():
        (folder / key).write_text(json.dumps(value))
    try_out(lambda: scan_it(folder))
