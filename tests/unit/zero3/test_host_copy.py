"""Copies in blocks; those of a GPU are made as these are, but page-locked and later."""

from __future__ import annotations

import torch

from kappaspeech.zero3.host_copy import HostCopy


def test_tensors_lie_one_after_the_other_in_blocks_that_the_next_copy_fills_again():
    copy = HostCopy(block_bytes=100)
    for _ in range(2):
        copy.begin()
        tensors = [torch.randn(3, 5), torch.randn(11, 6).T, torch.randn(2)]
        blocks = [list(copy._copy(tensor.contiguous().flatten().view(torch.uint8))) for tensor in tensors]
        for tensor in tensors:
            tensor.requires_grad_()
        copy.settle()
        found = [torch.cat(list(parts)).numpy().tobytes() for parts in blocks]
        assert found == [tensor.detach().contiguous().numpy().tobytes() for tensor in tensors]
        # 60, 264 and 8 bytes
        assert [[len(part) for part in parts] for parts in blocks] == [[60], [40, 100, 100, 24], [8]]
        assert copy.num_bytes == 400


def test_what_is_on_the_host_already_isnt_copied_again():
    copy, tensor = HostCopy(block_bytes=100), torch.randn(50)
    blocks = copy.take(tensor)
    assert [block.data_ptr() for block in blocks] == [tensor.data_ptr(), tensor.data_ptr() + 100]
    assert copy.num_bytes == 0


def test_one_of_many_experts_on_the_host_holds_on_to_none_of_the_others():
    stack = torch.randn(6, 5, 2)
    blocks = HostCopy(block_bytes=100).take(stack.unbind()[4])
    assert [block.untyped_storage().nbytes() for block in blocks] == [40]
    assert torch.equal(blocks[0].view(torch.float32), stack[4].flatten())
