"""The start of a process: it joins the ranks that it was launched with, as torch's, MPI's or the pipes' cluster, or alone."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import MutableMapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Literal

from kappaspeech.errors import ConfigError
from kappaspeech.ranks.cluster import DEFAULT_TIMEOUT_SECONDS, Cluster, SingleProcess
from kappaspeech.ranks.devices import identify_gpu, refuse_shared_gpu
from kappaspeech.ranks.listening import open_store
from kappaspeech.ranks.pipe_cluster import HUB_VARIABLE, PipeCluster
from kappaspeech.ranks.rendezvous import (
    Launch,
    count_local_rank,
    explained_meeting,
    find_launch,
    free_port,
    prepare_rendezvous,
)
from kappaspeech.ranks.torch_cluster import TorchCluster


def start_cluster(*, backend: Literal["torch", "mpi"] = "torch", timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> Cluster:
    """Join the ranks that this process was launched with; alone, a world of one. Raises `ConfigError`."""
    launch = find_launch(os.environ)
    if backend == "mpi":
        from kappaspeech.ranks.mpi_cluster import MpiCluster

        return MpiCluster(launch)
    if launch.world_size == 1:
        return SingleProcess()
    if HUB_VARIABLE in os.environ:
        return PipeCluster(launch)
    prepare_rendezvous(launch)
    return TorchCluster(launch, timeout_seconds=timeout_seconds)


def start_training_cluster(*, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> TorchCluster:
    """Join the ranks through DeepSpeed, also as a world of one, without compiling anything.

    On a CPU, DeepSpeed would build its shared-memory all-reduce at start-up (a minute or two; killed half-way it leaves a
    lock that hangs every later run). Nothing here uses it. Beside GPUs it has none, and the table of its ops stays unread: at a
    first look DeepSpeed tries each op, and prints a warning for each that wants a CUDA toolkit.
    """
    import torch

    hide_unwanted_gpus(os.environ)
    launch = find_launch(os.environ)
    if launch.world_size == 1:
        os.environ["MASTER_ADDR"] = os.environ.get("MASTER_ADDR") or "127.0.0.1"
        os.environ["MASTER_PORT"] = os.environ.get("MASTER_PORT") or str(free_port())
    prepare_rendezvous(launch)
    on_cuda = torch.cuda.is_available()
    backend = "nccl" if on_cuda else "gloo"
    timeout = timedelta(seconds=timeout_seconds)
    store = None
    with explained_meeting(launch):
        server = open_store(launch.rank, timeout=timeout)
    if launch.local_rank is None:
        launch, store = _meet_for_local_rank(launch, timeout=timeout)
    if on_cuda:
        # DeepSpeed reads it from the environment
        os.environ["LOCAL_RANK"] = str(_choose_gpu(launch, torch.cuda.device_count()))
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed calls these by their old names, several times a step
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    import deepspeed
    import deepspeed.ops

    if not on_cuda:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    with explained_meeting(launch):
        if store is not None:
            # DeepSpeed joins an existing world; it is imported first, since its defaults keep a world that exists for ever
            torch.distributed.init_process_group(
                backend, store=store, rank=launch.rank, world_size=launch.world_size, timeout=timeout
            )
        deepspeed.init_distributed(dist_backend=backend, verbose=False, timeout=timeout)
    cluster = TorchCluster(launch, timeout_seconds=timeout_seconds).leave_by(deepspeed.comm.destroy_process_group, server=server)
    refuse_shared_gpu(cluster, _identify_own_gpu() if on_cuda else "")
    return cluster


def hide_unwanted_gpus(environment: MutableMapping[str, str]) -> None:
    """Hide GPUs from torch if DeepSpeed is told to use processors, before torch looks for any: one would take what the other
    doesn't."""
    if environment.get("DS_ACCELERATOR") == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""


def _meet_for_local_rank(launch: Launch, *, timeout: timedelta) -> tuple[Launch, Any]:
    """Count the ranks before this one on its host; return that with the store by which the ranks met.

    A rank must know its GPU before its first collective; so they exchange their hosts' names by that store.
    """
    import torch.distributed as dist

    with explained_meeting(launch):
        meeting = dist.rendezvous("env://", launch.rank, launch.world_size, timeout=timeout)  # type: ignore[attr-defined]
        store, rank, world_size = next(meeting)
        store.set_timeout(timeout)
        store.set(f"kappaspeech/host/{rank}", socket.gethostname())
        hosts = [store.get(f"kappaspeech/host/{other}").decode() for other in range(world_size)]
    local_rank = count_local_rank(rank, hosts)
    os.environ["LOCAL_RANK"] = str(local_rank)
    return replace(launch, local_rank=local_rank), store


def _choose_gpu(launch: Launch, num_visible: int) -> int:
    """The GPU of a rank: its host's next one, or the only one if each rank was given one (srun --gpus-per-task=1)."""
    assert launch.local_rank is not None
    if num_visible > 1 and launch.local_rank >= num_visible:
        raise ConfigError(
            f"Rank {launch.rank} is number {launch.local_rank + 1} of those on {socket.gethostname()}, which shows it "
            f"{num_visible} GPUs. Start as many ranks a host as it has GPUs."
        )
    return 0 if num_visible == 1 else launch.local_rank


def _identify_own_gpu() -> str:
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    # PyTorch tells it from version 2.6 on
    return identify_gpu(str(getattr(properties, "uuid", "")), properties.name, os.environ.get("CUDA_VISIBLE_DEVICES", ""))
