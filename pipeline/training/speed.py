"""How fast a run is: operations and tokens of its batches, and the rate that its devices reach at best."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.model.flops import ClipLengths, SpeechCost
from pipeline.speech.batches import IGNORED_LABEL, SpeechBatch

# large enough for any device's best rate, small enough for a fraction of a second
_CPU_SIZE, _GPU_SIZE = 1024, 8192
_NUM_TRIES = 6


@dataclass(frozen=True)
class StepWork:
    """What a rank did in a step: the LLM's tokens (prompt, audio, labels; no padding) and all operations of its model."""

    num_llm_tokens: int
    flops: int


def count_work(cost: SpeechCost, batches: Sequence[SpeechBatch]) -> StepWork:
    """The work that these batches are. A masked sample is none."""
    clips = [
        ClipLengths(num_frames, num_labels, encoded=states is None)
        for batch in batches
        for num_frames, num_labels, weight, states in zip(
            batch.num_frames.tolist(),
            (batch.label_ids != IGNORED_LABEL).sum(dim=1).tolist(),
            batch.weights.tolist(),
            batch.states,
            strict=True,
        )
        if weight > 0
    ]
    return StepWork(sum(cost.num_llm_tokens(clip) for clip in clips), cost.step(clips).total)


def measure_matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a square product in `dtype`: the best of a few tries, as others may use the device too."""
    size = _GPU_SIZE if device.type == "cuda" else _CPU_SIZE
    left = torch.ones(size, size, dtype=dtype, device=device)
    right = torch.ones(size, size, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(_NUM_TRIES):
        _wait_for(device)
        began = time.perf_counter()
        left @ right
        _wait_for(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
