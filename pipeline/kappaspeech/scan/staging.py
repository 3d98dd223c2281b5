"""The way of a weight's bytes to a device: on a GPU by page-locked memory and a stream of its own, beside what it computes."""

from __future__ import annotations

import threading

import torch
from torch import Tensor


class Staging:
    """Brings one tensor at a time to a device, whoever asks."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # torch's stub has no types
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._locked = torch.empty(0, dtype=torch.uint8)
        # a reader thread brings the next matrix while another asks for parts of a large one
        self._turn = threading.Lock()

    def bring(self, tensor: Tensor) -> Tensor:
        """`tensor` on the device, whole when this returns; the host's memory may be used again."""
        if self._stream is None:
            return tensor.to(self._device)
        size = tensor.numel() * tensor.element_size()
        with self._turn:
            if len(self._locked) < size:
                # kept, as to lock memory takes longer than to copy it
                self._locked = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            locked = self._locked[:size].view(tensor.dtype).view(tensor.shape)
            locked.copy_(tensor)
            with torch.cuda.stream(self._stream):
                there = locked.to(self._device, non_blocking=True)
            self._stream.synchronize()
        # its memory is the copying stream's: it must not be given out again before those that compute have read it
        there.record_stream(torch.cuda.current_stream(self._device))
        return there
