"""The process group: who this process is, how ranks exchange values, and how one rank's failure reaches them all.

The only module that names `torch.distributed` and MPI. Every method of a `Cluster` is a collective unless it says
otherwise: each rank must call it, in the same order.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from pipeline.errors import ConfigError, KappaSpeechError, RankFailure

DEFAULT_TIMEOUT_SECONDS = 600.0
_DEFAULT_PORT = 29500


@dataclass(frozen=True)
class Launch:
    """Where this process stands among those a launcher started. `launcher` names whose variables said so."""

    rank: int
    world_size: int
    local_rank: int
    launcher: str


# (launcher, rank, world size, local rank), the surest first: torchrun and deepspeed set the first triple.
_LAUNCHER_VARIABLES = (
    ("torch", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("openmpi", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("pmi", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)


def find_launch(environment: Mapping[str, str]) -> Launch:
    """Read rank and world size from what torchrun, deepspeed, Open MPI, MPICH or srun left in `environment`.

    Without any of them the process is alone. SLURM_STEP_NUM_TASKS exists inside an srun step alone, so a command typed into
    a batch script is one process and not task 0 of N. Raises `ConfigError` on a value that makes no sense.
    """
    for launcher, rank_name, size_name, local_name in _LAUNCHER_VARIABLES:
        if rank_name not in environment or size_name not in environment:
            continue
        try:
            rank, world_size = int(environment[rank_name]), int(environment[size_name])
            local_rank = int(environment.get(local_name, "0"))
        except ValueError:
            raise ConfigError(f"{rank_name}, {size_name} and {local_name} must be whole numbers; one of them isn't.") from None
        if not 0 <= rank < world_size:
            raise ConfigError(f"{rank_name}={rank} isn't a rank of {size_name}={world_size}.")
        return Launch(rank, world_size, local_rank, launcher)
    return Launch(0, 1, 0, "none")


class Cluster(Protocol):
    """Ranks that exchange values."""

    rank: int
    world_size: int
    local_rank: int

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, in rank order, on every rank."""

    def broadcast(self, value: Any, *, source: int = 0) -> Any:
        """Rank `source`'s value, on every rank."""

    def barrier(self) -> None:
        """Return once every rank has come here."""

    def take_ticket(self, queue: str) -> int:
        """The next number (0, 1, …) of a counter that all ranks share. Not a collective: any rank, any number of times."""

    def close(self) -> None:
        """Leave the group."""


class SingleProcess:
    """A world of one."""

    rank = 0
    world_size = 1
    local_rank = 0

    def __init__(self) -> None:
        self._tickets: dict[str, int] = {}
        self._lock = threading.Lock()

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def broadcast(self, value: Any, *, source: int = 0) -> Any:
        assert source == 0
        return value

    def barrier(self) -> None:
        pass

    def take_ticket(self, queue: str) -> int:
        with self._lock:
            ticket = self._tickets.get(queue, 0)
            self._tickets[queue] = ticket + 1
        return ticket

    def close(self) -> None:
        pass


class TorchCluster:
    """Ranks of a `torch.distributed` world; objects travel over a gloo group beside whatever the training uses."""

    def __init__(self, launch: Launch, *, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> None:
        import torch.distributed as dist

        timeout = timedelta(seconds=timeout_seconds)
        self._owns_world = not dist.is_initialized()
        if self._owns_world:
            dist.init_process_group("gloo", init_method="env://", timeout=timeout, rank=launch.rank, world_size=launch.world_size)
        self._dist = dist
        self._group = dist.new_group(backend="gloo", timeout=timeout)
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.local_rank = launch.local_rank

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.world_size
        self._dist.all_gather_object(values, value, group=self._group)
        return values

    def broadcast(self, value: Any, *, source: int = 0) -> Any:
        box = [value]
        self._dist.broadcast_object_list(box, src=source, group=self._group)
        return box[0]

    def barrier(self) -> None:
        self._dist.barrier(group=self._group)

    def take_ticket(self, queue: str) -> int:
        store = self._dist.distributed_c10d._get_default_store()
        return int(store.add(f"kappaspeech/{queue}", 1)) - 1

    def close(self) -> None:
        if self._owns_world and self._dist.is_initialized():
            self._dist.destroy_process_group()


def start_cluster(*, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> Cluster:
    """Join the ranks that this process was launched with; alone, a world of one."""
    launch = find_launch(os.environ)
    if launch.world_size == 1:
        return SingleProcess()
    prepare_rendezvous(launch)
    return TorchCluster(launch, timeout_seconds=timeout_seconds)


def prepare_rendezvous(launch: Launch) -> None:
    """Give torch and DeepSpeed the variables they rendezvous by, whoever launched the ranks.

    srun tells everyone the step's first host; mpirun tells nobody, so its ranks ask rank 0 over MPI.
    """
    os.environ.update(RANK=str(launch.rank), WORLD_SIZE=str(launch.world_size), LOCAL_RANK=str(launch.local_rank))
    if "MASTER_ADDR" not in os.environ:
        if launch.launcher in ("openmpi", "pmi"):
            from mpi4py import MPI

            address, port = MPI.COMM_WORLD.bcast((_own_address(), _free_port()), root=0)
            os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
        elif launch.launcher == "slurm":
            os.environ["MASTER_ADDR"] = os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
        else:
            raise ConfigError(
                f"WORLD_SIZE is {launch.world_size} but MASTER_ADDR isn't set, so the ranks can't find each other. "
                "Start them with torchrun or deepspeed, or set MASTER_ADDR and MASTER_PORT."
            )
    # Jobs that share a node must not share a port: SLURM's job id tells them apart.
    job_id = int(os.environ.get("SLURM_JOB_ID", "0"))
    os.environ.setdefault("MASTER_PORT", str(_DEFAULT_PORT + job_id % 20000))


def _own_address() -> str:
    """The address other hosts reach this one by; loopback where it has none."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def agreement(cluster: Cluster) -> Iterator[None]:
    """Run a block that may fail on some ranks; where it did, raise on every rank after it.

    The failed rank raises its own error, the others a `RankFailure` that names it. No collective may stand inside the
    block: a rank that failed early wouldn't reach it.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # every cause must reach the other ranks, whatever it is
        failure = error
    status = None
    if failure is not None:
        code = failure.exit_code if isinstance(failure, KappaSpeechError) else 1
        status = (f"{type(failure).__name__}: {failure}" if code == 1 else str(failure), code)
    statuses = cluster.gather(status)
    if failure is not None:
        raise failure
    for rank, other in enumerate(statuses):
        if other is not None:
            raise RankFailure(rank, other[0], exit_code=other[1])
