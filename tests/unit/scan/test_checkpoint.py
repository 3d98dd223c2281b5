"""Each kind of checkpoint listed, read and digested, and a broken one named."""

from __future__ import annotations

import hashlib
import json
import struct
import time

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from kappaspeech.errors import CheckpointError
from kappaspeech.scan.checkpoint import open_checkpoint
from kappaspeech.scan.matrices import MatrixRef, StoredMatrix, digest_matrix, list_matrices
from kappaspeech.scan.ranking import KappaRanking
from kappaspeech.scan.stage import scan
from kappaspeech.scan.torch_algebra import TorchAlgebra
from kappaspeech.tensor_files.dtypes import widen

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def tensors(seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight")
    weights = {name: torch.randn(30, 12, generator=generator).to(dtype) for name in names}
    return {**weights, "model.norm.weight": torch.ones(12, dtype=dtype)}


def save_folder(folder, content, *, config=None):
    folder.mkdir(exist_ok=True)
    save_file(content, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def read_all(checkpoint, name):
    shape = checkpoint.shape_of(name)
    return widen(checkpoint.read(name, 0, int(np.prod(shape))), checkpoint.dtype_of(name)).reshape(shape)


def scan_matrix(checkpoint, name):
    ref = next(ref for ref in list_matrices(checkpoint)[0] if ref.name == name)
    matrix = StoredMatrix(checkpoint, ref)
    whole = matrix.block(0, matrix.long)
    return whole.T if ref.shape[0] > ref.shape[1] else whole


@pytest.mark.parametrize("dtype", DTYPES)
def test_safetensors_of_any_float_dtype_are_read_exactly(tmp_path, dtype):
    content = tensors(dtype=dtype)
    checkpoint = open_checkpoint(save_folder(tmp_path, content))
    assert [ref.name for ref in checkpoint.tensors] == sorted(content)
    for name, tensor in content.items():
        np.testing.assert_array_equal(read_all(checkpoint, name), tensor.double().numpy())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_float8_code_has_the_value_that_torch_gives_it(dtype):
    codes = np.arange(256, dtype=np.uint8)
    values = torch.from_numpy(codes).view(dtype).float().numpy()
    np.testing.assert_array_equal(widen(codes, str(dtype).removeprefix("torch.")), values)


def test_an_index_of_several_files_is_one_checkpoint_with_the_same_digest(tmp_path):
    content = tensors()
    whole = open_checkpoint(save_folder(tmp_path / "whole", content))
    pieces, blobs = tmp_path / "pieces", tmp_path / "blobs"
    pieces.mkdir()
    blobs.mkdir()
    weight_map = {}
    for number, (name, tensor) in enumerate(content.items()):
        file = f"model-{number}.safetensors"
        save_file({name: tensor}, blobs / f"{number}")
        # a hub cache holds links to blobs without a suffix
        (pieces / file).symlink_to(blobs / f"{number}")
        weight_map[name] = file
    (pieces / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    cut = open_checkpoint(pieces)
    assert cut.digest == whole.digest
    assert cut.tensors[0].file == "model-0.safetensors"
    (pieces / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-1\.safetensors"):
        open_checkpoint(pieces)


def test_a_fine_tuned_checkpoint_has_another_digest_and_a_copy_the_same(tmp_path):
    content = tensors()
    digest = open_checkpoint(save_folder(tmp_path / "a", content)).digest
    assert open_checkpoint(save_folder(tmp_path / "b", content)).digest == digest
    content["model.layers.1.mlp.up_proj.weight"] = content["model.layers.1.mlp.up_proj.weight"] * 1.01
    assert open_checkpoint(save_folder(tmp_path / "c", content)).digest != digest


def test_a_thousand_tensors_are_listed_and_digested_within_a_second(tmp_path):
    save_folder(tmp_path, {f"layers.{number}.weight": torch.zeros(8, 8) for number in range(1000)})
    began = time.process_time()
    checkpoint = open_checkpoint(tmp_path)
    num_matrices = len(list_matrices(checkpoint)[0])
    assert len(checkpoint.digest) == 64
    assert (num_matrices, time.process_time() - began < 1) == (1000, True)


def test_the_head_is_the_embedding_where_the_config_ties_them(tmp_path):
    content = tensors()
    config = {"tie_word_embeddings": True}
    absent = open_checkpoint(save_folder(tmp_path / "absent", content, config=config))
    copied = {**content, "lm_head.weight": content["model.embed_tokens.weight"].clone()}
    stored = open_checkpoint(save_folder(tmp_path / "stored", copied, config=config))
    other = open_checkpoint(save_folder(tmp_path / "other", {**copied, "lm_head.weight": torch.ones(30, 12)}, config=config))
    untied = open_checkpoint(save_folder(tmp_path / "untied", copied, config={}))
    found = [{ref.name: ref.aliases for ref in each.tensors} for each in (absent, stored, other, untied)]
    assert [names["model.embed_tokens.weight"] for names in found] == [("lm_head.weight",), ("lm_head.weight",), (), ()]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-7]), "torn"),
        (lambda path: path.write_bytes(path.read_bytes()[:20]), "announces a header"),
        (lambda path: path.write_bytes(b""), "0 bytes"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"), "git-lfs"),
        (lambda path: path.write_bytes(struct.pack("<Q", 4) + b"abcd"), "no JSON"),
        (lambda path: path.unlink(), "no weights"),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path, spoil, says):
    path = save_folder(tmp_path, tensors()) / "model.safetensors"
    spoil(path)
    with pytest.raises(CheckpointError, match=says) as caught:
        open_checkpoint(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert caught.value.exit_code == 2


def test_what_is_nowhere_and_no_hub_id_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="nowhere"):
        open_checkpoint(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match="kind"):
        open_checkpoint(tmp_path / "notes.txt")


def test_a_model_of_which_the_cache_has_a_part_is_fetched(tmp_path, monkeypatch):
    """transformers' AutoConfig leaves a folder with config.json alone."""
    asked = []

    def download(_name, *, local_files_only=False, **_options):
        asked.append(local_files_only)
        if not local_files_only:
            if is_offline:
                raise LocalEntryNotFoundError("offline")
            save_folder(tmp_path, tensors())
        return str(tmp_path)

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    is_offline = True
    with pytest.raises(CheckpointError, match=r"holds no weights that can be read \(config\.json\)"):
        open_checkpoint("someone/model")
    is_offline = False
    assert len(open_checkpoint("someone/model").tensors) == len(tensors())
    asked.clear()
    assert len(open_checkpoint("someone/model").tensors) == len(tensors())
    assert asked == [True]


def test_torch_files_are_read_through_their_views_with_ties_known(tmp_path):
    content = tensors()
    embedding = content["model.embed_tokens.weight"]
    state = {**content, "lm_head.weight": embedding, "turned.weight": torch.arange(24.0).reshape(4, 6).T}
    torch.save(state, tmp_path / "pytorch_model.bin")
    checkpoint = open_checkpoint(tmp_path)
    names = {ref.name: ref.aliases for ref in checkpoint.tensors}
    assert names["model.embed_tokens.weight"] == ("lm_head.weight",)
    for name in state:
        np.testing.assert_array_equal(read_all(checkpoint, name), state[name].double().numpy())
    np.testing.assert_array_equal(checkpoint.read("turned.weight", 5, 9), state["turned.weight"].reshape(-1)[5:9].numpy())
    # the digest sees stored bytes, so the same weights give the same digest whatever holds them
    save_folder(tmp_path / "same", {name: tensor.clone().contiguous() for name, tensor in state.items()})
    assert checkpoint.digest == open_checkpoint(tmp_path / "same").digest


def test_whisper_checkpoints_hold_their_weights_under_a_key(tmp_path):
    state = {"encoder.conv1.weight": torch.randn(8, 4, 3), "encoder.blocks.0.attn.query.weight": torch.randn(8, 8)}
    torch.save({"dims": {"n_mels": 80}, "model_state_dict": state}, tmp_path / "tiny.pt")
    matrices, _ = list_matrices(open_checkpoint(tmp_path / "tiny.pt"))
    assert {ref.name: ref.shape for ref in matrices} == {
        "encoder.conv1.weight": (8, 12),
        "encoder.blocks.0.attn.query.weight": (8, 8),
    }


class _Code:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_torch_file_with_code_in_it_is_refused_and_the_code_does_not_run(tmp_path, capsys):
    torch.save({"a.weight": torch.ones(2, 2), "b": _Code()}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="code beside"):
        open_checkpoint(tmp_path / "model.pt")
    assert "code ran" not in capsys.readouterr().out
    # it would have
    torch.load(tmp_path / "model.pt", weights_only=False)
    assert "code ran" in capsys.readouterr().out


def test_gguf_blocks_are_dequantised(tmp_path):
    import gguf

    weight = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    packed = gguf.quantize(weight, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.ffn_up.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.ffn_down.weight", weight.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    expected = gguf.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(scan_matrix(checkpoint, "blk.0.ffn_up.weight"), expected)
    np.testing.assert_array_equal(scan_matrix(checkpoint, "blk.0.ffn_down.weight"), weight.astype(np.float16))
    np.testing.assert_array_equal(checkpoint.read("blk.0.ffn_up.weight", 37, 101), expected.reshape(-1)[37:101])


def test_a_run_is_its_base_with_what_was_trained_in_its_place(tmp_path):
    base = save_folder(tmp_path / "base", tensors())
    run = tmp_path / "run"
    (run / "checkpoints" / "step-000010").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (run / "config.json").write_text(json.dumps({"model": {"llm": str(base)}}))
    name = "model.layers.0.mlp.up_proj.weight"
    trained = {f"llm.{name}": torch.full((30, 12), 2.5), "adaptor.projection.weight": torch.ones(3, 3)}
    save_file(trained, run / "checkpoints" / "step-000010" / "trained.safetensors")
    checkpoint = open_checkpoint(run)
    assert [ref.name for ref in checkpoint.tensors] == sorted(tensors())
    assert read_all(checkpoint, name).max() == 2.5
    assert checkpoint.digest != open_checkpoint(base).digest


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.experts.gate_up_proj",
        # granite's, and JetMoE's
        "model.layers.0.block_sparse_moe.input_linear.weight",
        "model.layers.0.mlp.output_linear.weight",
        "blk.0.ffn_up_exps.weight",
    ],
)
def test_experts_are_ranked_one_by_one_and_vectors_are_only_listed(tmp_path, name):
    experts = torch.randn(3, 6, 5)
    content = {
        name: experts,
        "model.layers.0.mlp.gate.weight": torch.randn(1, 6),
        "model.norm.weight": torch.ones(6),
        "positions": torch.zeros(4, 4, dtype=torch.int64),
        "nothing": torch.zeros(0, 4),
    }
    checkpoint = open_checkpoint(save_folder(tmp_path, content))
    matrices, skipped = list_matrices(checkpoint)
    assert [(ref.name, ref.shape, ref.expert) for ref in matrices] == [
        (f"{name}[{expert}]", (6, 5), expert) for expert in range(3)
    ]
    np.testing.assert_array_equal(scan_matrix(checkpoint, matrices[2].name), experts[2].double().numpy())
    reasons = {item.name: item.reason for item in skipped}
    assert "vector" in reasons["model.layers.0.mlp.gate.weight"]
    assert reasons["model.norm.weight"] == "1-dimensional"
    assert "int64" in reasons["positions"]
    assert reasons["nothing"] == "empty"


DBRX = "transformer.blocks.0.ffn.experts.mlp.w1"


def test_experts_whose_rows_lie_in_one_matrix_are_ranked_one_by_one_and_taken_each_or_together(tmp_path):
    weight = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    config = {"model_type": "dbrx", "ffn_config": {"moe_num_experts": 3, "moe_top_k": 1}}
    checkpoint = open_checkpoint(save_folder(tmp_path, {DBRX: weight}, config=config))
    matrices, _ = list_matrices(checkpoint)
    names = [f"{DBRX}[{expert}]" for expert in range(3)]
    assert [(ref.name, ref.shape, ref.expert) for ref in matrices] == [(names[number], (4, 5), number) for number in range(3)]
    for ref in matrices:
        own = weight[4 * ref.expert : 4 * ref.expert + 4]
        np.testing.assert_array_equal(scan_matrix(checkpoint, ref.name), own.double().numpy())
        assert digest_matrix(checkpoint, ref) == hashlib.sha256(own.numpy().tobytes()).hexdigest()
    scan(checkpoint).write(tmp_path / "ranking.json")
    ranking = KappaRanking.read(tmp_path / "ranking.json")
    each = {item.name: item.shape for item in ranking.candidates("kappa")}
    assert each == dict.fromkeys(names, (4, 5))
    (together,) = ranking.candidates("kappa", experts="together")
    assert (together.name, together.shape) == (DBRX, (12, 5))
    expected = [float(np.linalg.cond(weight.double()[first : first + 4])) for first in (0, 4, 8)]
    assert together.kappa == pytest.approx(sum(expected) / 3)


@pytest.mark.parametrize(
    ("name", "rows", "config"),
    [
        # an expert's own matrix, under two layouts' names; experts that all tokens share; a router; rows of no three experts
        ("model.layers.0.mlp.experts.0.up_proj.weight", 12, {"num_experts": 3}),
        ("transformer.blocks.0.ffn.experts.mlp.1.w1.weight", 12, {"num_experts": 3}),
        ("decoder.block.1.layer.2.mlp.experts.expert_0.wi.weight", 12, {"num_experts": 3}),
        ("model.layers.0.mlp.shared_experts.up_proj.weight", 12, {"n_routed_experts": 3}),
        ("model.layers.0.mlp.experts.gate.weight", 3, {"num_local_experts": 3}),
        (DBRX, 13, {"ffn_config": {"moe_num_experts": 3}}),
        (DBRX, 12, {"ffn_config": {"moe_num_experts": "3", "num_experts": True}}),
        (DBRX, 12, None),
    ],
)
def test_a_matrix_that_does_not_stack_experts_is_ranked_whole(tmp_path, name, rows, config):
    checkpoint = open_checkpoint(save_folder(tmp_path, {name: torch.randn(rows, 5)}, config=config))
    assert [(ref.name, ref.shape) for ref in list_matrices(checkpoint)[0]] == [(name, (rows, 5))]


def test_codes_of_experts_in_one_matrix_are_refused_as_those_of_three_dimensions_are(tmp_path):
    content = {DBRX: torch.randn(12, 5).to(torch.float8_e4m3fn), f"{DBRX}_scale": torch.rand(12, 1)}
    matrices, skipped = list_matrices(open_checkpoint(save_folder(tmp_path, content, config={"num_experts": 3})))
    assert matrices == []
    assert "doesn't say how to scale" in {item.name: item.reason for item in skipped}[DBRX]


@pytest.mark.parametrize(
    ("codes", "scale_name", "scales"),
    [
        (torch.float8_e4m3fn, "w.weight_scale_inv", torch.rand(2, 3) + 0.5),
        (torch.float8_e4m3fn, "w.weight_scale", torch.tensor(0.25)),
        (torch.int8, "w.weight_scale", torch.rand(200, 1) + 0.5),
        (torch.int8, "w.weight_scale", torch.rand(200) + 0.5),
    ],
)
def test_codes_are_multiplied_with_their_scales(tmp_path, codes, scale_name, scales):
    raw = (torch.randn(200, 300) * 20).to(codes)
    checkpoint = open_checkpoint(save_folder(tmp_path, {"w.weight": raw, scale_name: scales}))
    matrices, skipped = list_matrices(checkpoint)
    assert [ref.name for ref in matrices] == ["w.weight"]
    assert [item.reason for item in skipped] == ["the scales of a quantised tensor"]
    if scales.shape == (2, 3):
        spread = scales.repeat_interleave(128, 0)[:200].repeat_interleave(128, 1)[:, :300]
    else:
        spread = scales.reshape(-1, 1).expand(200, 300) if scales.dim() else scales
    np.testing.assert_allclose(scan_matrix(checkpoint, "w.weight"), (raw.double() * spread.double()).numpy(), rtol=1e-7)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"w.weight": torch.ones(4, 4, dtype=torch.int8)}, "without their scales"),
        ({"w.weight": torch.ones(4, 4).to(torch.float8_e5m2)}, "without their scales"),
        ({"w.weight": torch.ones(700, 4, dtype=torch.int8), "w.weight_scale": torch.ones(3, 9)}, "doesn't say how"),
        ({"w.qweight": torch.ones(4, 4, dtype=torch.int32)}, "packed codes"),
    ],
)
def test_codes_without_fitting_scales_are_refused_and_never_ranked_raw(tmp_path, content, says):
    matrices, skipped = list_matrices(open_checkpoint(save_folder(tmp_path, content)))
    assert matrices == []
    assert says in skipped[0].reason


@pytest.mark.parametrize("shape", [(40, 7), (7, 40)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_matrix_too_large_to_hold_is_read_in_blocks_to_the_same_values(tmp_path, monkeypatch, shape, dtype):
    weight = torch.randn(shape).to(dtype)
    checkpoint = open_checkpoint(save_folder(tmp_path, {"w.weight": weight}))
    held = StoredMatrix(checkpoint, MatrixRef("w.weight", checkpoint.tensors[0], shape))
    monkeypatch.setattr("kappaspeech.scan.matrices.MAX_HELD_BYTES", 0)
    streamed = StoredMatrix(checkpoint, MatrixRef("w.weight", checkpoint.tensors[0], shape))
    for start, stop in ((0, 13), (13, 40)):
        np.testing.assert_array_equal(streamed.block(start, stop), held.block(start, stop))
        algebra = TorchAlgebra(torch.device("cpu"))
        blocks = [algebra.block(algebra.fetch(matrix, start, stop), exponent=0) for matrix in (streamed, held)]
        for block in blocks:
            np.testing.assert_array_equal(block.numpy(), held.block(start, stop))


def test_a_scan_by_torch_ranks_as_the_host_does_whatever_the_storage(tmp_path):
    generator = torch.Generator().manual_seed(1)
    content = {f"{dtype}.{rows}".replace("torch.", ""): torch.randn(rows, 24, generator=generator).to(dtype)
               for dtype in DTYPES for rows in (9, 24, 60)}  # fmt: skip
    content |= {"codes": (torch.randn(30, 20, generator=generator) * 20).to(torch.int8), "codes_scale": torch.rand(30) + 0.5}
    checkpoint = open_checkpoint(save_folder(tmp_path, content))
    host, torchs = scan(checkpoint, with_sigmas=True), scan(checkpoint, with_sigmas=True, device="cpu")
    assert [matrix.name for matrix in torchs.matrices] == [matrix.name for matrix in host.matrices]
    for matrix, other in zip(host.matrices, torchs.matrices, strict=True):
        assert other.stats.kappa == pytest.approx(matrix.stats.kappa, rel=matrix.stats.error_bound + other.stats.error_bound)
        np.testing.assert_allclose(torchs.spectra[matrix.name], host.spectra[matrix.name], rtol=1e-6)
