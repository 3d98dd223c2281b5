"""bitsandbytes' 4-bit weights, to the number as it dequantises them: what it made once, and by itself if it is installed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kappaspeech.ranks.cluster import SingleProcess
from kappaspeech.scan.checkpoint import open_checkpoint
from kappaspeech.scan.four_bit import find_four_bit
from kappaspeech.scan.matrices import StoredMatrix, list_matrices
from kappaspeech.scan.stage import scan
from kappaspeech.tensor_files.dtypes import FLOATS, widen

NAME = "model.layers.0.self_attn.q_proj.weight"
EXPERTS = "model.layers.0.mlp.experts.down_proj"
# 6 × 20 weights in blocks of 64, quantised by bitsandbytes 0.50.2: its tensors, and the numbers that it makes of them again
MADE = json.loads(Path(__file__).with_name("bitsandbytes.json").read_text())


def to_tensor(dtype: str, shape: list[int], content: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(content), dtype=getattr(torch, dtype)).reshape(shape)


def store(folder: Path, parts: dict[str, torch.Tensor], *, name: str = NAME, **more: torch.Tensor):
    save_file({**{name + part: tensor for part, tensor in parts.items()}, **more}, folder / "model.safetensors")
    return open_checkpoint(folder)


def made(case: str) -> dict[str, torch.Tensor]:
    return {part: to_tensor(*content) for part, content in MADE[case]["parts"].items()}


def numbers(content: bytes, dtype: str) -> np.ndarray:
    """Bytes of `dtype` as they count: a zero's sign doesn't, which FP4's code 8 leaves to the kernel."""
    return widen(np.frombuffer(content, FLOATS[dtype].array), dtype)


@pytest.mark.parametrize("case", MADE)
def test_codes_become_the_numbers_that_bitsandbytes_makes_of_them(tmp_path, case):
    checkpoint = store(tmp_path, made(case), **{"lm_head.weight": torch.eye(3)})
    weight = find_four_bit(checkpoint, NAME)
    assert (weight.shape, weight.dtype) == ((6, 20), case.split()[1])
    expected = numbers(bytes.fromhex(MADE[case]["values"]), weight.dtype)
    for start, stop in ((0, 120), (0, 1), (1, 2), (3, 64), (63, 65), (64, 120), (119, 120)):
        read = numbers(weight.read(checkpoint, start, stop).tobytes(), weight.dtype)
        np.testing.assert_array_equal(read, expected[start:stop])
    matrices, skipped = list_matrices(checkpoint)
    assert {(ref.name, ref.shape, ref.tensor.dtype) for ref in matrices} >= {(NAME, (6, 20), weight.dtype)}
    assert {item.reason for item in skipped} == {"the scales of a quantised tensor"}
    assert {item.name for item in skipped} == {NAME + part for part in made(case)} - {NAME}
    source = StoredMatrix(checkpoint, next(ref for ref in matrices if ref.name == NAME))
    whole = expected.reshape(6, 20)
    np.testing.assert_array_equal(source.block(0, 20), whole)
    ranking = scan(checkpoint, cluster=SingleProcess())
    ranked = next(matrix for matrix in ranking.matrices if matrix.name == NAME)
    sigmas = np.linalg.svd(whole, compute_uv=False)
    assert ranked.stats.kappa == pytest.approx(sigmas[0] / sigmas[-1], rel=1e-9)
    # they were rounded to 16 numbers, and to their dtype after that
    assert ranked.storage_noise is None


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes_itself_dequantises_to_the_same_numbers(tmp_path, kind, dtype, nested):
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes isn't installed")
    # blocks and blocks of blocks that end within the weight, and rows of an odd width
    for number, (shape, blocksize) in enumerate((((96, 200), 64), ((300, 130), 128), ((7, 15), 64))):
        drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(number)).to(getattr(torch, dtype))
        codes, state = functional.quantize_4bit(drawn, quant_type=kind, blocksize=blocksize, compress_statistics=nested)
        beside = {f".{part}": tensor for part, tensor in state.as_dict(packed=True).items()}
        (tmp_path / str(number)).mkdir()
        checkpoint = store(tmp_path / str(number), {"": codes, **beside})
        expected = functional.dequantize_4bit(codes, state).contiguous().view(torch.uint8).numpy().tobytes()
        read = find_four_bit(checkpoint, NAME).read(checkpoint, 0, math.prod(shape)).tobytes()
        np.testing.assert_array_equal(numbers(read, dtype), numbers(expected, dtype))
        assert kind == "fp4" or read == expected


def test_experts_in_4_bits_are_ranked_one_by_one(tmp_path):
    case = "nf4 bfloat16 plain"
    parts = made(case)
    state = json.loads(bytes(parts[".quant_state.bitsandbytes__nf4"].tolist()))
    # matrices of 3 × 5, of which every other one begins in the middle of a byte
    text = json.dumps({**state, "shape": [8, 3, 5]}).encode()
    parts[".quant_state.bitsandbytes__nf4"] = torch.tensor(list(text), dtype=torch.uint8)
    checkpoint = store(tmp_path, parts, name=EXPERTS)
    matrices, _ = list_matrices(checkpoint)
    assert [ref.name for ref in matrices] == [f"{EXPERTS}[{expert}]" for expert in range(8)]
    whole = numbers(bytes.fromhex(MADE[case]["values"]), "bfloat16").reshape(8, 3, 5)
    for ref, expected in zip(matrices, whole, strict=True):
        np.testing.assert_array_equal(StoredMatrix(checkpoint, ref).block(0, 5), expected)


def test_codes_without_what_they_need_are_refused(tmp_path):
    whole = made("fp4 float16 nested")
    state = ".quant_state.bitsandbytes__fp4"
    content = json.loads(bytes(whole[state].tolist()))

    def with_state(**changes) -> dict[str, torch.Tensor]:
        return {**whole, state: torch.tensor(list(json.dumps({**content, **changes}).encode()), dtype=torch.uint8)}

    broken = [{key: tensor for key, tensor in whole.items() if key != part} for part in whole if part]
    broken += [with_state(shape=[6, 21]), with_state(shape=[10**9, 10**9]), with_state(blocksize=0), with_state(dtype="int8")]
    broken += [with_state(blocksize=32), with_state(nested_blocksize=None), with_state(quant_type="af4")]
    broken += [with_state(shape="6,20"), {**whole, state: torch.zeros(9, dtype=torch.uint8)}]
    broken += [{**whole, ".absmax": whole[".absmax"].float()}]
    for number, parts in enumerate(broken):
        (tmp_path / str(number)).mkdir()
        matrices, skipped = list_matrices(store(tmp_path / str(number), parts))
        assert matrices == [], number
        if state in parts and ".absmax" in parts:
            reason = next(item.reason for item in skipped if item.name == NAME)
            assert "bitsandbytes in 4 bits" in reason, number
