"""The number of processes that a scan takes of a host, if no launcher starts them."""

from __future__ import annotations

from dataclasses import dataclass

from kappaspeech.host_memory import free_memory_bytes
from kappaspeech.processors import count_cores
from kappaspeech.scan.checkpoint import Checkpoint
from kappaspeech.scan.matrices import list_matrices
from kappaspeech.scan.partition import fitting_processes


@dataclass(frozen=True)
class Processes:
    """As many at `most` as cores are there for, and as many of these as `free_bytes` of memory are enough for."""

    most: int
    fitting: int
    free_bytes: int


def count_processes(checkpoint: Checkpoint, *, num_threads: int) -> Processes:
    """The processes that share this host's cores, each with so many threads, and its memory."""
    most, free = max(1, count_cores() // num_threads), free_memory_bytes()
    shapes = [ref.shape for ref in list_matrices(checkpoint)[0]]
    return Processes(most, fitting_processes(shapes, most=most, free_bytes=free), free)
