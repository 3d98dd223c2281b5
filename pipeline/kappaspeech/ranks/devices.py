"""The GPUs of ranks: NCCL wants another one for each rank of a host.

If DeepSpeed begins NCCL with the world, NCCL itself refuses two ranks of one GPU there (`rendezvous.explained_meeting`). Without
a launcher that numbers the ranks of a host, and with some versions of PyTorch, it begins with the first collective of tensors.
There its error would be one of the training.
"""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Sequence

from kappaspeech.errors import ConfigError
from kappaspeech.ranks.agreement import agreement
from kappaspeech.ranks.cluster import Cluster


def identify_gpu(uuid: str, name: str, visible_devices: str) -> str:
    """Return what only ranks with the same GPU have alike; "" if that isn't known.

    `uuid` and `name` are CUDA's, `visible_devices` is CUDA_VISIBLE_DEVICES. Of a slice (MIG), CUDA may give the UUID of the GPU
    that it is cut from. A process sees one slice, which the variable names unless a container shows no other.
    """
    if "MIG" in name.split():
        return visible_devices if visible_devices.startswith("MIG") else ""
    return uuid


def describe_shared_gpu(places: Sequence[tuple[str, str]]) -> str | None:
    """A sentence about the first GPU that several ranks have; None if each has its own. `places` has (host, GPU) of each rank,
    with "" for a GPU that isn't known and for a processor."""
    ranks: dict[tuple[str, str], list[int]] = defaultdict(list)
    for rank, place in enumerate(places):
        ranks[place].append(rank)
    for (host, gpu), sharing in ranks.items():
        if gpu and len(sharing) > 1:
            return (
                f"Ranks {sharing[0]} and {sharing[1]} on {host} share the GPU {gpu}, and NCCL takes one rank a GPU. Start as "
                "many ranks a host as it has GPUs, or let each rank see another one (CUDA_VISIBLE_DEVICES)."
            )
    return None


def refuse_shared_gpu(cluster: Cluster, gpu: str) -> None:
    """Raise a `ConfigError` on every rank if two ranks of a host have the same `gpu` (`identify_gpu`). A collective."""
    told = describe_shared_gpu(cluster.gather((socket.gethostname(), gpu)))
    with agreement(cluster):
        if told is not None:
            raise ConfigError(told)
