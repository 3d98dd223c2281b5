"""The place of this process among those that a launcher started, and where they meet: from its environment variables."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kappaspeech.errors import ClusterError, ConfigError
from kappaspeech.outside import describe

_DEFAULT_PORT = 29500
# Below the ports that Linux gives to outgoing connections (from 32768).
_FIRST_JOB_PORT, _NUM_JOB_PORTS = 20000, 12000
# A prime, so that the steps of a job and its neighbours' keep apart.
_PORTS_BETWEEN_STEPS = 1009


@dataclass(frozen=True)
class Launch:
    """The place of this process among those that a launcher started. `launcher` names the launcher whose variables gave it.

    `local_rank` is None if no launcher gave it: the ranks that meet then find it by `count_local_rank`.
    """

    rank: int
    world_size: int
    local_rank: int | None
    launcher: str


# (launcher, rank, world size, local rank), the surest first: torchrun and deepspeed set the first triple.
_LAUNCHER_VARIABLES = (
    ("torch", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("openmpi", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("pmi", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)


def find_launch(environment: Mapping[str, str]) -> Launch:
    """Read rank and world size from the variables that torchrun, deepspeed, Open MPI, MPICH or srun left in `environment`.

    Without any of them the process is alone. SLURM_STEP_NUM_TASKS exists inside an srun step alone, so a command typed into a
    batch script is one process and not task 0 of N. Raises `ConfigError` on a value that makes no sense.
    """
    for launcher, rank_name, size_name, local_name in _LAUNCHER_VARIABLES:
        if rank_name not in environment or size_name not in environment:
            continue
        try:
            rank, world_size = int(environment[rank_name]), int(environment[size_name])
            local_rank = _find_local_rank(environment, rank, world_size)
        except ValueError:
            raise ConfigError(f"{rank_name}, {size_name} and {local_name} must be whole numbers; one of them isn't.") from None
        if not 0 <= rank < world_size:
            raise ConfigError(f"{rank_name}={rank} isn't a rank of {size_name}={world_size}.")
        return Launch(rank, world_size, local_rank, launcher)
    return Launch(0, 1, 0, "none")


def _find_local_rank(environment: Mapping[str, str], rank: int, world_size: int) -> int | None:
    """The local rank by any launcher that gives the same rank and world: RANK is often exported by hand from srun's variables."""
    for _, rank_name, size_name, local_name in _LAUNCHER_VARIABLES:
        same = (environment.get(rank_name), environment.get(size_name)) == (str(rank), str(world_size))
        if same and local_name in environment:
            return int(environment[local_name])
    return 0 if world_size == 1 else None


def count_local_rank(rank: int, hosts: Sequence[str]) -> int:
    """A rank's number among those of its host, from all ranks' hosts."""
    return hosts[:rank].count(hosts[rank])


def prepare_rendezvous(launch: Launch) -> None:
    """Give torch and DeepSpeed the variables they rendezvous by, whoever launched the ranks. MASTER_ADDR, if set, stays.

    mpirun gives no rank the address of rank 0, so its ranks ask over MPI, a collective; srun gives every rank the step's hosts.
    Raises `ConfigError` if the ranks can't find each other.
    """
    os.environ.update(RANK=str(launch.rank), WORLD_SIZE=str(launch.world_size))
    if launch.local_rank is not None:
        os.environ["LOCAL_RANK"] = str(launch.local_rank)
    if "MASTER_ADDR" not in os.environ:
        is_step = os.environ.get("SLURM_STEP_NUM_TASKS") == str(launch.world_size)
        if launch.launcher in ("openmpi", "pmi") and not (launch.launcher == "pmi" and is_step):
            os.environ.update(_ask_rank_0(launch))
        elif is_step and os.environ.get("SLURM_STEP_NUM_NODES") == "1":
            os.environ["MASTER_ADDR"] = "127.0.0.1"
        elif is_step:
            os.environ["MASTER_ADDR"] = first_host(os.environ.get("SLURM_STEP_NODELIST", "127.0.0.1"))
        else:
            raise ConfigError(
                f"WORLD_SIZE is {launch.world_size} but MASTER_ADDR isn't set, so the ranks can't find each other. "
                "Start them with torchrun or deepspeed, or set MASTER_ADDR and MASTER_PORT."
            )
    os.environ.setdefault("MASTER_PORT", str(job_port(os.environ)))


def job_port(environment: Mapping[str, str]) -> int:
    """A port that jobs, and steps of a job, don't share on a node that they share: from SLURM's ids; else torch's own default."""
    if "SLURM_JOB_ID" not in environment:
        return _DEFAULT_PORT
    job, step = int(environment["SLURM_JOB_ID"]), int(environment.get("SLURM_STEP_ID", "0"))
    return _FIRST_JOB_PORT + (job + _PORTS_BETWEEN_STEPS * step) % _NUM_JOB_PORTS


def first_host(node_list: str) -> str:
    """The first of SLURM's list of hosts: "gpu[03-05,9],login" → gpu03. Containers have no `scontrol` to ask.

    Not SLURM_LAUNCH_NODE_IPADDR: if srun is typed on a login node, that is the login node.
    """
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", node_list)
    assert first is not None
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first[0])


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _ask_rank_0(launch: Launch) -> dict[str, str]:
    """Rank 0's address and a port of its choice, by MPI. Every rank of the launch calls it."""
    world = import_mpi().COMM_WORLD
    if world.Get_size() != launch.world_size:
        raise ConfigError(
            f"The launcher started {launch.world_size} processes ({launch.launcher}), but mpi4py's MPI sees {world.Get_size()}, "
            "so they can't find each other. Use the mpirun of the MPI that mpi4py finds, or set MASTER_ADDR and MASTER_PORT."
        )
    hosts = world.allgather(socket.gethostname())
    address = "127.0.0.1" if len(set(hosts)) == 1 else _own_address()
    return dict(zip(("MASTER_ADDR", "MASTER_PORT"), world.bcast((address, str(free_port())), root=0), strict=True))


def import_mpi() -> Any:
    """mpi4py's `MPI`. Raises `ConfigError` if it, or the MPI library that it was built for, can't be loaded."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            f"mpi4py can't be loaded by {sys.executable}: {describe(error)}. Make the MPI that started these ranks known to it "
            "(module load, LD_LIBRARY_PATH), or set MASTER_ADDR and MASTER_PORT: then ranks meet without MPI."
        ) from error
    return MPI


def _own_address() -> str:
    """The address by which other hosts reach this one, or its name if it knows itself by loopback alone."""
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        return name
    return name if address.startswith("127.") else address


@contextlib.contextmanager
def explained_meeting(launch: Launch) -> Iterator[None]:
    """Explain in this project's words why the ranks couldn't meet. Raises `ClusterError`; `ConfigError` for ranks of one GPU."""
    own = f"rank {launch.rank} on {socket.gethostname()}"
    try:
        yield
    except RuntimeError as error:
        if "Duplicate GPU" in str(error):
            raise ConfigError(
                f"{own} shares a GPU with another rank, and NCCL takes one rank a GPU. Start as many ranks a host as it has GPUs."
            ) from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # NCCL gives its reason last, behind what it usually means
        cause = f"{lines[0]} {lines[-1]}" if "Last error:" in lines[:-1] else lines[0]
        address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        if "EADDRINUSE" in cause or "address already in use" in cause.lower():
            raise ClusterError(
                f"{own} can't listen on port {port}: another program does. Start again with another --master_port (MASTER_PORT)."
            ) from error
        raise ClusterError(
            f"{own} couldn't meet the other {launch.world_size - 1} at {address}, port {port}: {cause} Are all of them started, "
            "and do their hosts reach that address and port?"
        ) from error
