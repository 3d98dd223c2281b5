"""Singular directions that stay: exactly these, on both sides, whatever the matrix has become."""

from __future__ import annotations

import pytest
import torch
from torch.overrides import TorchFunctionMode

from kappaspeech.errors import SelectionError
from kappaspeech.model.kept_directions import find_directions, find_still


@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (20, 20), (3, 12, 8)])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.9])
def test_a_change_keeps_nothing_but_what_is_orthogonal_to_the_kept_directions(shape, share):
    generator = torch.Generator().manual_seed(1)
    weight, change = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    kept = find_directions(weight, share=share)
    assert kept.sigma_K.shape[-1] == max(1, int(share * min(shape[-2:])))
    after = kept.restore(weight + change) - weight
    scale = float(torch.linalg.matrix_norm(weight, 2).max())
    assert float((kept.left_MK.mT @ after).abs().max()) < 1e-6 * scale
    assert float((after @ kept.right_NK).abs().max()) < 1e-6 * scale
    # the projection of the change, and so the nearest: P_U Δ P_V
    left = torch.eye(shape[-2]) - kept.left_MK @ kept.left_MK.mT
    right = torch.eye(shape[-1]) - kept.right_NK @ kept.right_NK.mT
    torch.testing.assert_close(after, left @ change @ right, rtol=0, atol=1e-5)


def test_the_kept_are_those_of_largest_sigma_and_a_matrix_that_didnt_change_stays():
    weight = torch.diag(torch.tensor([1.0, 5.0, 3.0, 0.5]))
    kept = find_directions(weight, share=0.5)
    assert kept.sigma_K.tolist() == [5, 3]
    torch.testing.assert_close(kept.restore(weight), weight, rtol=0, atol=1e-6)
    moved = kept.restore(weight + torch.ones(4, 4))
    assert moved[1, 1] == pytest.approx(5, abs=1e-6)
    assert moved[0, 3] == pytest.approx(1, abs=1e-6)


def test_a_tensor_of_one_row_has_nothing_left_to_train_and_a_vector_no_directions():
    shapes = {"q": (8, 8), "gate": (1, 8), "experts": (4, 6, 1), "pair": (2, 8)}
    assert find_still(shapes, share=0.9) == ["gate", "experts"]
    weight = torch.randn((1, 8), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(find_directions(weight, share=0.1).restore(weight + 1), weight, rtol=0, atol=1e-6)
    with pytest.raises(SelectionError, match=r"1 selected tensor\(s\) are vectors \(first: norm\)"):
        find_still({**shapes, "norm": (8,)}, share=0.5)


def test_directions_are_those_of_pefts_osf():
    from peft.tuners.osf.utils import decompose_weight_matrix

    weight = torch.randn((12, 9), generator=torch.Generator().manual_seed(2))
    theirs, ours = decompose_weight_matrix(weight, 4), find_directions(weight, share=0.5)
    torch.testing.assert_close(ours.sigma_K, theirs["S_high"], rtol=1e-5, atol=0)
    for mine, other in ((ours.left_MK, theirs["U_high"]), (ours.right_NK, theirs["V_high"].T)):
        torch.testing.assert_close(mine @ mine.T, other @ other.T, rtol=0, atol=1e-5)


class Tf32(TorchFunctionMode):
    """Products as a GPU makes them if it may: of factors with ten bits behind the first."""

    def __torch_function__(self, function, _types, arguments=(), named=None):
        if function in (torch.Tensor.matmul, torch.Tensor.__matmul__) and torch.get_float32_matmul_precision() != "highest":
            arguments = [((part.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32) for part in arguments]
        return function(*arguments, **(named or {}))


def test_tf32_moves_nothing_that_did_not_change():
    """NVIDIA's images switch it on for all that a process multiplies."""
    weight = torch.randn((96, 64), generator=torch.Generator().manual_seed(3))
    kept, square = find_directions(weight, share=0.5), weight @ weight.T
    torch.set_float32_matmul_precision("high")
    try:
        with Tf32():
            assert float((weight @ weight.T - square).abs().max()) > 1e-3
            torch.testing.assert_close(kept.restore(weight), weight, rtol=0, atol=2e-5)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
