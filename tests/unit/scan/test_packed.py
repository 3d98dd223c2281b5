"""Quantised checkpoints of every scheme: helpers are never ranked, and codes only if they can be made numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kappaspeech.scan.checkpoint import open_checkpoint
from kappaspeech.scan.matrices import StoredMatrix, list_matrices

P = "model.layers.0.self_attn.q_proj"
E = "model.layers.0.mlp.experts"
HEAD = "lm_head.weight"


def floats(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def integers(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(0)).to(dtype)


SCHEMES = {
    "GPTQ": {f"{P}.qweight": integers(16, 64), f"{P}.qzeros": integers(4, 8), f"{P}.scales": floats(4, 64),
             f"{P}.g_idx": integers(128)},
    "AWQ": {f"{P}.qweight": integers(64, 16), f"{P}.qzeros": integers(4, 8), f"{P}.scales": floats(4, 64)},
    "HQQ": {f"{P}.W_q": integers(32, 64, dtype=torch.uint8), f"{P}.scale": floats(32, 4), f"{P}.zero": floats(32, 4),
            f"{P}.meta_scale": floats(2, 4)},
    "compressed-tensors": {f"{P}.weight_packed": integers(64, 16), f"{P}.weight_scale": floats(64, 4),
                           f"{P}.weight_zero_point": integers(8, 4), f"{P}.weight_shape": integers(2, dtype=torch.int64),
                           f"{P}.weight_global_scale": floats(1), f"{P}.input_global_scale": floats(2, 2)},
    "compressed-tensors, sparse": {f"{P}.weight.compressed": floats(64, 32), f"{P}.weight.bitmask": integers(64, 8,
                                   dtype=torch.uint8), f"{P}.weight.shape": integers(2, dtype=torch.int64)},
    "bitsandbytes, 4 bits": {f"{P}.weight": integers(2048, 1, dtype=torch.uint8), f"{P}.weight.absmax": floats(8, 8),
                             f"{P}.weight.quant_map": floats(4, 4), f"{P}.weight.nested_absmax": floats(2, 2),
                             f"{P}.weight.quant_state.bitsandbytes__nf4": integers(90, dtype=torch.uint8)},
    "NVFP4": {f"{P}.weight": integers(64, 64, dtype=torch.uint8), f"{P}.weight_scale": floats(64, 8).to(torch.float8_e4m3fn),
              f"{P}.weight_scale_2": torch.tensor(0.1), f"{P}.input_scale": torch.tensor(1.0)},
    "MXFP4": {f"{E}.gate_up_proj_blocks": integers(4, 64, 2, 16, dtype=torch.uint8),
              f"{E}.gate_up_proj_scales": integers(4, 64, 2, dtype=torch.uint8),
              f"{E}.gate_up_proj_bias": floats(4, 64), f"{E}.down_proj_bias": floats(4, 32)},
    "BitNet": {f"{P}.weight": integers(16, 64, dtype=torch.uint8), f"{P}.weight_scale": floats(1)},
    "MXFP8 with codes for scales": {f"{P}.weight": floats(64, 64).to(torch.float8_e4m3fn),
                                    f"{P}.weight_scale": integers(64, 2, dtype=torch.uint8)},
    "torchao": {f"{P}._weight_qdata": integers(64, 64, dtype=torch.int8), f"{P}._weight_scale": floats(64, 4)},
    "quanto": {f"{P}.weight._data": integers(64, 64, dtype=torch.int8), f"{P}.weight._scale": floats(64, 2)},
    "AQLM": {f"{P}.codes": integers(64, 8, 1, dtype=torch.int8), f"{P}.codebooks": floats(1, 256, 1, 8),
             f"{P}.scales": floats(64, 2, 1, 1)},
    "VPTQ": {f"{P}.indices": integers(1, 8, 16), f"{P}.centroids.weight": floats(2, 64), f"{P}.weight_scale": floats(2, 64)},
    "EXL2": {f"{P}.q_weight": integers(16, 64), f"{P}.q_scale": integers(4, 8), f"{P}.q_scale_max": floats(2, 4)},
    "QuIP#": {f"{P}.Qidxs": integers(64, 8, dtype=torch.int64), f"{P}.SU": floats(2, 64), f"{P}.SV": floats(2, 64)},
    "Marlin": {f"{P}.B": integers(4, 128), f"{P}.s": floats(2, 64)},
    "EETQ": {f"{P}.weight": integers(64, 64, dtype=torch.int8), f"{P}.weight_scales": floats(2, 32)},
}  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
def test_of_a_packed_checkpoint_only_the_plain_weights_are_ranked(tmp_path, scheme):
    save_file({**SCHEMES[scheme], HEAD: floats(50, 64)}, tmp_path / "model.safetensors")
    matrices, skipped = list_matrices(open_checkpoint(tmp_path))
    assert [ref.name for ref in matrices] == [HEAD]
    assert {item.name for item in skipped} == set(SCHEMES[scheme])
    codes = next(item for item in skipped if item.name == next(iter(SCHEMES[scheme])))
    assert "vector" not in codes.reason
    assert any(word in codes.reason for word in ("packed codes", "scale")), codes


def test_names_like_those_of_helpers_are_ranked_where_nothing_is_packed(tmp_path):
    plain = {f"{P}.weight": floats(8, 6), "model.codes.weight": floats(8, 6), "model.indices": floats(8, 6),
             "model.layer_scale.weight": floats(8, 6), "model.B": floats(8, 6)}  # fmt: skip
    save_file(plain, tmp_path / "model.safetensors")
    assert {ref.name for ref in list_matrices(open_checkpoint(tmp_path))[0]} == set(plain)


def scanned(folder, content) -> np.ndarray:
    save_file(content, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    ref = next(ref for ref in list_matrices(checkpoint)[0] if ref.name == f"{P}.weight")
    matrix = StoredMatrix(checkpoint, ref)
    whole = matrix.block(0, matrix.long)
    return whole.T if ref.shape[0] > ref.shape[1] else whole


def test_bitsandbytes_rows_of_8_bits_are_dequantised(tmp_path):
    codes, largest = integers(24, 40, dtype=torch.int8), torch.rand(24) + 0.5
    content = {f"{P}.weight": codes, f"{P}.SCB": largest, f"{P}.weight_format": torch.tensor(0, dtype=torch.uint8)}
    expected = codes.double() * largest.double()[:, None] / 127
    np.testing.assert_allclose(scanned(tmp_path, content), expected.numpy(), rtol=1e-12)


def test_bitsandbytes_codes_in_a_layout_of_gpus_are_refused(tmp_path):
    content = {f"{P}.weight": integers(24, 40, dtype=torch.int8), f"{P}.SCB": torch.rand(24),
               f"{P}.weight_format": torch.tensor(2, dtype=torch.uint8)}  # fmt: skip
    save_file(content, tmp_path / "model.safetensors")
    matrices, skipped = list_matrices(open_checkpoint(tmp_path))
    assert matrices == []
    assert "layout" in next(item.reason for item in skipped if item.name == f"{P}.weight")


def test_zero_points_are_taken_from_the_codes(tmp_path):
    codes, scales, zeros = integers(24, 40, dtype=torch.int8), torch.rand(24, 1) + 0.5, integers(24, 1, dtype=torch.int8)
    content = {f"{P}.weight": codes, f"{P}.weight_scale": scales, f"{P}.weight_zero_point": zeros}
    expected = (codes.double() - zeros.double()) * scales.double()
    np.testing.assert_allclose(scanned(tmp_path, content), expected.numpy(), rtol=1e-12)


@pytest.mark.parametrize("name", [f"{P}.weight_scale", f"{P}.scale"])
def test_scales_that_are_powers_of_two_are_decoded(tmp_path, name):
    codes = floats(128, 256).to(torch.float8_e4m3fn)
    scales = torch.tensor([[0.25, 2.0]])
    expected = codes.double() * scales.double().repeat_interleave(128, 1)
    content = {f"{P}.weight": codes, name: scales.to(torch.float8_e8m0fnu)}
    np.testing.assert_array_equal(scanned(tmp_path, content), expected.numpy())


def test_factors_of_lora_are_no_weights(tmp_path):
    save_file({f"base_model.model.{P}.lora_A.weight": floats(8, 64), f"base_model.model.{P}.lora_B.weight": floats(64, 8)},
              tmp_path / "adapter_model.safetensors")  # fmt: skip
    matrices, skipped = list_matrices(open_checkpoint(tmp_path / "adapter_model.safetensors"))
    assert (matrices, len(skipped), "merge" in skipped[0].reason) == ([], 2, True)
