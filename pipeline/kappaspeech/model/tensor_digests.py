"""SHA-256 of tensors, hashed while the next one is made ready."""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

# Bytes of copies that may wait to be hashed: four of an 8B model's larger tensors. A single one that is larger may too.
_WAITING_BYTES = 512 << 20
_MOST_THREADS = 4


class Hasher:
    """A hasher of tensors in threads of its own, which hashlib lets run at once; it holds few copies at a time."""

    def __init__(self, *, waiting_bytes: int = _WAITING_BYTES) -> None:
        self._threads = ThreadPoolExecutor(max(1, min(_MOST_THREADS, torch.get_num_threads())))
        self._limit = waiting_bytes
        self._waiting: deque[tuple[int, Future[str]]] = deque()
        self._waiting_bytes = 0
        self._found: dict[str, Future[str]] = {}

    def add(self, name: str, tensor: Tensor, *, stays: bool = False) -> None:
        """Have `tensor` hashed, or a copy on the host unless it `stays` as it is; wait first if too many bytes are waiting."""
        while self._waiting and self._waiting_bytes + tensor.nbytes > self._limit:
            num_bytes, oldest = self._waiting.popleft()
            oldest.result()
            self._waiting_bytes -= num_bytes
        self._found[name] = self._threads.submit(digest_tensor, tensor if stays else tensor.detach().to("cpu", copy=True))
        self._waiting.append((tensor.nbytes, self._found[name]))
        self._waiting_bytes += tensor.nbytes

    def digests(self) -> dict[str, str]:
        """The digest of every tensor, by name, once all are hashed; no more can be added."""
        found = {name: future.result() for name, future in self._found.items()}
        self._threads.shutdown()
        return found


def digest_tensor(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes in row-major order, as 64 hex digits."""
    flat = tensor.detach().contiguous().cpu().flatten().view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def share_out(sizes: list[int], world_size: int) -> list[int]:
    """The rank that hashes each tensor: of those that have the fewest bytes so far, the lowest."""
    loads = [0] * world_size
    ranks = []
    for size in sizes:
        ranks.append(loads.index(min(loads)))
        loads[ranks[-1]] += size
    return ranks
