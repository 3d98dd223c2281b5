"""The number of a scan's own processes."""

from __future__ import annotations

import torch
from safetensors.torch import save_file

from kappaspeech.scan import processes
from kappaspeech.scan.checkpoint import open_checkpoint
from kappaspeech.scan.processes import Processes, count_processes


def test_cores_are_shared_out_as_far_as_memory_lasts(tmp_path, monkeypatch):
    save_file({f"{name}.weight": torch.randn(4, 5) for name in "abcdefgh"}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(str(tmp_path / "model.safetensors"))
    monkeypatch.setattr(processes, "count_cores", lambda: 8)
    monkeypatch.setattr(processes, "free_memory_bytes", lambda: 10**9)
    assert count_processes(checkpoint, num_threads=1) == Processes(8, 8, 10**9)
    assert count_processes(checkpoint, num_threads=3) == Processes(2, 2, 10**9)
    assert count_processes(checkpoint, num_threads=16) == Processes(1, 1, 10**9)
    # each takes a hundred megabytes and its matrix
    monkeypatch.setattr(processes, "free_memory_bytes", lambda: 330_000_000)
    assert count_processes(checkpoint, num_threads=1) == Processes(8, 3, 330_000_000)
