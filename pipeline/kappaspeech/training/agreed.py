"""The first act of a run's ranks: they find out that they run alike, and settle their arithmetic."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kappaspeech.allocator import keep_freed_memory
from kappaspeech.artefacts import digest_json
from kappaspeech.config.deepspeed_config import read_deepspeed_config
from kappaspeech.config.run_config import RunConfig
from kappaspeech.config.unheeded import find_unheeded
from kappaspeech.escaping import for_terminal
from kappaspeech.model.arithmetic import Arithmetic
from kappaspeech.processors import count_sharing, find_cores, share_cores
from kappaspeech.ranks.agreement import agreement
from kappaspeech.ranks.cluster import Cluster
from kappaspeech.ranks.hosts import check_alike, software, warn_of_clocks
from kappaspeech.training.arithmetic import choose_arithmetic
from kappaspeech.training.surroundings import Surroundings


@dataclass(frozen=True)
class Agreed:
    """The arithmetic of all ranks, and the DeepSpeed JSON without its "auto"; `device` is this rank's own."""

    deepspeed_config: dict[str, Any]
    arithmetic: Arithmetic
    device: torch.device


def agree_on_settings(config: RunConfig, around: Surroundings) -> Agreed:
    """Raise `ConfigError` if software or configuration differ between hosts; else choose the arithmetic. A collective."""
    cluster = around.cluster
    check_alike(cluster, software(), remedy="Install the same on all hosts.")
    warn_of_clocks(cluster)
    with agreement(cluster):
        deepspeed_config = read_deepspeed_config(Path(config.deepspeed))
    settings = {
        "the configuration": digest_json(config.model_dump(mode="json")),
        "the DeepSpeed JSON": digest_json(deepspeed_config),
    }
    check_alike(cluster, settings, remedy="Give all hosts the same files, or a file system that they share.")
    if around.is_writer:
        for unheeded in find_unheeded(config):
            print(for_terminal(f"warning: {unheeded.told}"), file=sys.stderr, flush=True)
    _set_threads(config, cluster)
    if not torch.cuda.is_available():
        keep_freed_memory()
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    arithmetic = choose_arithmetic(config, deepspeed_config, cluster=cluster, device=device, folder=around.folder)
    if around.is_writer:
        print(for_terminal(f"computes in {arithmetic.line}"), file=sys.stderr, flush=True)
        if arithmetic.why_padded is not None:
            print(for_terminal(f"packing auto: clips are padded, as {arithmetic.why_padded}"), file=sys.stderr, flush=True)
    return Agreed(arithmetic.resolve(deepspeed_config), arithmetic, device)


def _set_threads(config: RunConfig, cluster: Cluster) -> None:
    """Share the cores among the ranks that may run on them, unless the configuration or the environment says otherwise. A
    collective: not every launcher says how many ranks a host has, and an optimizer on the host wants all of their cores."""
    everywhere = cluster.gather((socket.gethostname(), find_cores()))
    if config.training.num_threads is not None:
        torch.set_num_threads(config.training.num_threads)
    elif not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(share_cores(count_sharing(everywhere, cluster.rank)))
