"""A copy of tensors on the host, from which a checkpoint is written while the devices go on computing."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kappaspeech.runs.share_writer import cut

# a power of two, to which torch rounds what it allocates page-locked
_BLOCK_BYTES = 64 << 20


class HostCopy:
    """Blocks of memory that one copy after another fills, page-locked if a GPU fills them.

    They are kept, since locking them takes longer than copying. What is on the host already is nobody else's, and stays there.
    """

    def __init__(self, *, block_bytes: int = _BLOCK_BYTES) -> None:
        self._block_bytes = block_bytes
        self._blocks: list[Tensor] = []
        self._num_filled = 0

    @property
    def num_bytes(self) -> int:
        """The memory that is held."""
        return self._block_bytes * len(self._blocks)

    def begin(self) -> None:
        """Begin another copy; of the last one nothing is needed any more."""
        self._num_filled = 0

    def take(self, tensor: Tensor) -> list[Tensor]:
        """The bytes of a tensor in blocks on the host. Those of a GPU's are there once `settle` has returned."""
        if tensor.device.type == "cpu":
            # one of many experts would hold on to all that were gathered with it
            is_part = tensor.untyped_storage().nbytes() >= 2 * tensor.nbytes
            return cut(tensor.detach().clone() if is_part else tensor, block_bytes=self._block_bytes)
        return list(self._copy(tensor.detach().contiguous().flatten().view(torch.uint8)))

    def settle(self) -> None:
        """Return once all that was taken is there."""
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()

    def _copy(self, content: Tensor) -> Iterator[Tensor]:
        while len(content):
            index, place = divmod(self._num_filled, self._block_bytes)
            if index == len(self._blocks):
                self._blocks.append(_allocate(self._block_bytes))
            block = self._blocks[index][place : place + len(content)]
            # in the order of the device's work: nothing computed later is in it, and the tensor's memory isn't used again before
            block.copy_(content[: len(block)], non_blocking=True)
            self._num_filled += len(block)
            content = content[len(block) :]
            yield block


def _allocate(num_bytes: int) -> Tensor:
    if torch.cuda.is_available():
        try:
            return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:
            # a system may lock no more; ordinary memory takes longer
            pass
    return torch.empty(num_bytes, dtype=torch.uint8)
