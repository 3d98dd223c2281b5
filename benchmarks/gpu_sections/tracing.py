"""A profiled step in a few numbers: kernels' share of the time, the gaps between them, the host's waits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType

# what makes the host wait for the GPU
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
READS = ("aten::item", "aten::_local_scalar_dense", "aten::nonzero")
_NUM_NAMES = 12


@dataclass(frozen=True)
class Span:
    """Something that ran, in microseconds of the profiler's clock."""

    name: str
    start: float
    end: float


def trace(step: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Profile one call of `step`, which waits for its own end."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        step()
    kernels, host = [], []
    for event in profiler.events():
        span = Span(event.name, event.time_range.start, event.time_range.end)
        if event.device_type == DeviceType.CPU:
            host.append(span)
        elif not getattr(event, "is_user_annotation", False):
            kernels.append(span)
    return summarise(kernels, host)


def summarise(kernels: Iterable[Span], host: Iterable[Span]) -> dict[str, Any]:
    """The kernels' share of the time from the first event to the last, the longest gaps, and counts of host waits."""
    kernels, host = sorted(kernels, key=lambda span: span.start), list(host)
    everything = [*kernels, *host]
    if not everything:
        return {"wall_seconds": 0.0, "num_kernels": 0}
    began, ended = min(span.start for span in everything), max(span.end for span in everything)
    found: dict[str, Any] = {
        "wall_seconds": (ended - began) / 1e6,
        "num_kernels": len(kernels),
        "host_waits": count(host, WAITS),
        "host_reads": count(host, READS),
    }
    if not kernels:
        # a CPU's operations are nested, so that only their number says something
        return {**found, "num_host_operations": len(host)}
    busy, gaps = merge(kernels)
    return {
        **found,
        "kernel_share": busy / (ended - began),
        "longest_gaps_seconds": [gap / 1e6 for gap in sorted(gaps, reverse=True)[:5]],
        "gaps_over_100_microseconds": sum(gap > 100 for gap in gaps),
        "gap_seconds": sum(gaps) / 1e6,
        "kernels": heaviest(kernels),
    }


def merge(spans: list[Span]) -> tuple[float, list[float]]:
    """The time in which at least one of `spans`, which are in order, ran, and the time between them in which none did."""
    busy, gaps, end = 0.0, [], spans[0].start
    for span in spans:
        if span.start > end:
            gaps.append(span.start - end)
        busy += max(0.0, span.end - max(span.start, end))
        end = max(end, span.end)
    return busy, gaps


def heaviest(kernels: list[Span]) -> list[dict[str, Any]]:
    """The names that took most, with their share of all kernels' time."""
    seconds: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for span in kernels:
        seconds[span.name] += (span.end - span.start) / 1e6
        counts[span.name] += 1
    total = sum(seconds.values())
    names = sorted(seconds, key=lambda name: -seconds[name])[:_NUM_NAMES]
    return [{"name": n[:120], "seconds": seconds[n], "share": seconds[n] / total, "count": counts[n]} for n in names]


def count(spans: Iterable[Span], names: tuple[str, ...]) -> dict[str, int]:
    found: dict[str, int] = {}
    for span in spans:
        if span.name in names:
            found[span.name] = found.get(span.name, 0) + 1
    return found
