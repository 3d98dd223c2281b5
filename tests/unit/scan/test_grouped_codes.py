"""GPTQ's and AWQ's weights, to the number as AutoGPTQ and AutoAWQ dequantise them, and refused where they are anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kappaspeech.ranks.cluster import SingleProcess
from kappaspeech.scan import matrices as room
from kappaspeech.scan.checkpoint import Checkpoint, open_checkpoint
from kappaspeech.scan.grouped_codes import find_grouped
from kappaspeech.scan.matrices import StoredMatrix, digest_matrix, list_matrices
from kappaspeech.scan.stage import scan
from kappaspeech.tensor_files.dtypes import widen

MODULE = "model.layers.0.self_attn.q_proj"
# 32 outputs × 64 inputs in 4 groups, packed and dequantised by AutoGPTQ 0.7.1 (qlinear_cuda) and AutoAWQ 0.2.9 (gemm)
MADE = json.loads(Path(__file__).with_name("gptq_awq.json").read_text())
SHAPE = 32, 64


def to_tensor(dtype: str, shape: list[int], content: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(content), dtype=getattr(torch, dtype)).reshape(shape)


def made(case: str) -> dict[str, torch.Tensor]:
    return {part: to_tensor(*content) for part, content in MADE[case]["parts"].items()}


def values(case: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(MADE[case]["values"]), "<f2").reshape(SHAPE).astype(np.float64)


def store(folder: Path, parts: dict[str, torch.Tensor], config: dict[str, Any] | None, **more: torch.Tensor) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    save_file({**{f"{MODULE}.{part}": tensor for part, tensor in parts.items()}, **more}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({} if config is None else {"quantization_config": config}))
    return open_checkpoint(folder)


def read_whole(checkpoint: Checkpoint) -> np.ndarray:
    (ref,) = list_matrices(checkpoint)[0]
    return StoredMatrix(checkpoint, ref).block(0, max(SHAPE)).reshape(SHAPE)


@pytest.mark.parametrize("case", MADE)
def test_codes_become_the_numbers_that_the_package_makes_of_them(tmp_path, case, monkeypatch):
    checkpoint = store(tmp_path, made(case), MADE[case]["config"], **{"lm_head.weight": torch.eye(3)})
    expected = values(case)
    weight = find_grouped(checkpoint, f"{MODULE}.qweight", checkpoint.quantization)
    assert (weight.shape, weight.dtype, weight.name) == (SHAPE, "float16", f"{MODULE}.weight")
    for rows, columns in ((slice(0, 32), slice(0, 64)), (slice(3, 29), slice(5, 41)), (slice(31, 32), slice(63, 64))):
        part = widen(weight.read(checkpoint, rows, columns), "float16")
        np.testing.assert_array_equal(part, expected[rows, columns])
    matrices, skipped = list_matrices(checkpoint)
    assert {(ref.name, ref.tensor.name, ref.shape) for ref in matrices} >= {(weight.name, weight.name, SHAPE)}
    assert {item.name for item in skipped} == {f"{MODULE}.{part}" for part in made(case)} - {f"{MODULE}.qweight"}
    assert {item.reason for item in skipped} == {"the scales of a quantised tensor"}
    ref = next(ref for ref in matrices if ref.name == weight.name)
    np.testing.assert_array_equal(StoredMatrix(checkpoint, ref).block(0, 64), expected)
    # one that isn't kept in memory is read in parts
    monkeypatch.setattr(room, "MAX_HELD_BYTES", 0)
    np.testing.assert_array_equal(StoredMatrix(checkpoint, ref).block(7, 50), expected[:, 7:50])
    ranking = scan(checkpoint, cluster=SingleProcess())
    kappa = next(matrix.stats.kappa for matrix in ranking.matrices if matrix.name == weight.name)
    sigmas = np.linalg.svd(expected, compute_uv=False)
    assert kappa == pytest.approx(sigmas[0] / sigmas[-1], rel=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_second_format_of_gptq_keeps_its_zero_points_as_they_are(tmp_path, bits):
    parts, config = made(f"gptq {bits}"), MADE[f"gptq {bits}"]["config"]
    first = store(tmp_path / "1", parts, config)
    second = store(tmp_path / "2", parts, {**config, "checkpoint_format": "gptq_v2"})
    # the zero point is one less, so that a weight is larger by its scale
    scales = parts["scales"].double()[parts["g_idx"].long()].T.numpy()
    before, after = read_whole(first), read_whole(second)
    # both are rounded to halves
    assert (np.abs(after - before - scales) <= 2.0**-11 * (np.abs(after) + np.abs(before))).all()
    assert np.median(np.abs(after - before - scales)) < 0.5 * scales.min()
    digests = [digest_matrix(checkpoint, list_matrices(checkpoint)[0][0]) for checkpoint in (first, second)]
    assert digests[0] != digests[1], "a journal would take one for the other"


@pytest.mark.parametrize(("case", "part"), [("gptq 8", "g_idx"), ("awq 4", "")])
def test_without_a_table_groups_are_neighbours(tmp_path, case, part):
    parts = {name: tensor for name, tensor in made(case).items() if name != part}
    np.testing.assert_array_equal(read_whole(store(tmp_path, parts, MADE[case]["config"])), values(case))


def test_a_weight_of_other_bits_than_the_rest_is_read_by_its_shapes(tmp_path):
    config = {**MADE["gptq 4"]["config"], "dynamic": {MODULE: {"bits": 8}}}
    np.testing.assert_array_equal(read_whole(store(tmp_path, made("gptq 8"), config)), values("gptq 8"))


def refused(checkpoint: Checkpoint) -> bool:
    matrices, skipped = list_matrices(checkpoint)
    reason = next(item.reason for item in skipped if item.name == f"{MODULE}.qweight")
    return not matrices and "GPTQ or AWQ" in reason


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        ("gptq 4", None),
        ("gptq 4", {"quant_method": "hqq"}),
        ("gptq 4", {"checkpoint_format": "marlin"}),
        ("gptq 4", {"is_marlin_format": True}),
        ("gptq 4", {"checkpoint_format": {"a": 1}}),
        ("awq 4", {"version": "gemv"}),
        ("awq 4", {"version": 3}),
        ("awq 4", {"group_size": 48}),
        ("awq 4", {"group_size": 32}),
    ],
)
def test_formats_that_lie_otherwise_or_that_nothing_names_are_refused(tmp_path, case, changes):
    config = None if changes is None else {**MADE[case]["config"], **changes}
    assert refused(store(tmp_path, made(case), config))


def test_codes_whose_neighbours_do_not_fit_are_refused(tmp_path):
    config, whole = MADE["gptq 4"]["config"], made("gptq 4")
    table = whole["g_idx"]
    broken = [{key: tensor for key, tensor in whole.items() if key != part} for part in ("qzeros", "scales", "g_idx")]
    for part in ("qweight", "qzeros", "scales"):
        tensor = whole[part]
        broken += [{**whole, part: changed.contiguous()} for changed in (tensor[:-1], tensor[:, :-1], tensor[None], tensor[:0])]
    broken += [{**whole, part: whole[part].to(torch.int64)} for part in ("qweight", "qzeros")]
    broken += [{**whole, "scales": whole["scales"].to(torch.int16)}, {**whole, "g_idx": table[:-1].contiguous()}]
    broken += [{**whole, "g_idx": table - 1}, {**whole, "g_idx": table + 1}, {**whole, "g_idx": table.float()}]
    broken += [{**whole, "weight": torch.eye(4)}]
    for number, parts in enumerate(broken):
        checkpoint = store(tmp_path / str(number), parts, config)
        names = [ref.name for ref in list_matrices(checkpoint)[0]]
        assert names in ([], [f"{MODULE}.weight"] if "weight" in parts else []), number
        assert find_grouped(checkpoint, f"{MODULE}.qweight", checkpoint.quantization) is None, number


def test_a_file_that_was_cut_is_told_by_the_name_of_the_codes(tmp_path):
    checkpoint = store(tmp_path, made("awq 4"), MADE["awq 4"]["config"])
    (ref,) = list_matrices(checkpoint)[0]
    # the digest is read first: the file is cut after that
    assert checkpoint.digest
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(Exception, match=r"model\.safetensors") as caught:
        scan(checkpoint, cluster=SingleProcess())
    assert ref.name in str(caught.value)
    assert "Traceback" not in str(caught.value)
