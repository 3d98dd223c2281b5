"""The process group: how ranks exchange values, and how one rank's failure reaches them all.

Who this process is among them, and where they meet, is in `rendezvous.py`. `torch.distributed` is named here and in
`listening.py`; MPI is in `mpi_cluster.py`, one machine's own ranks in `local_cluster.py`.
Every method of a `Cluster` is a collective unless it says otherwise: each rank must call it, in the same order.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import hmac
import os
import pickle
import secrets
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from kappaspeech.errors import ConfigError, KappaSpeechError, RankFailure
from kappaspeech.listening import open_store
from kappaspeech.local_cluster import HUB_VARIABLE, LocalCluster
from kappaspeech.rendezvous import Launch, count_local_rank, explained_meeting, find_launch, free_port, prepare_rendezvous

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

    FloatArray = NDArray[float64]

T = TypeVar("T")

DEFAULT_TIMEOUT_SECONDS = 600.0
# Of what each rank gathers: its size, and at least so much room for it.
_HEADER_BYTES = 8
_MIN_ROOM = 4096
_MOST_KEPT_ROOM = 1 << 16
MAX_POST_BYTES = 2000
_SECRET_BYTES = 32
_SIGNATURE_LETTERS = 64


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

    def post(self, text: str) -> None:
        """Leave `text` (at most `MAX_POST_BYTES`) where every rank can read it. Not a collective."""

    def read_posts(self) -> list[str]:
        """What each rank posted last, "" where nothing yet. Not a collective."""

    def move(self, array: FloatArray | None, *, source: int, target: int) -> FloatArray | None:
        """Carry `source`'s square float64 array to `target`, which gets it; others get None. Called by all ranks alike."""

    def close(self) -> None:
        """Leave the group, for good. Called by all ranks alike, at the end of what went well."""


class SingleProcess:
    """A world of one."""

    rank = 0
    world_size = 1
    local_rank = 0

    def __init__(self) -> None:
        self._tickets: dict[str, int] = {}
        self._post = ""
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

    def post(self, text: str) -> None:
        self._post = text

    def read_posts(self) -> list[str]:
        return [self._post]

    def move(self, array: FloatArray | None, *, source: int, target: int) -> FloatArray | None:
        assert source == target == 0
        return array

    def close(self) -> None:
        pass


class TorchCluster:
    """Ranks of a `torch.distributed` world; objects travel over a gloo group beside whatever the training uses."""

    def __init__(self, launch: Launch, *, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> None:
        import torch.distributed as dist

        timeout = timedelta(seconds=timeout_seconds)
        self._leave_world: Callable[[], None] = dist.destroy_process_group
        self._server: Any = None
        if not dist.is_initialized():
            with explained_meeting(launch):
                self._server = open_store(launch.rank, timeout=timeout)
                dist.init_process_group(
                    "gloo", init_method="env://", timeout=timeout, rank=launch.rank, world_size=launch.world_size
                )
        self._dist = dist
        self._room = _MIN_ROOM
        self.rank = dist.get_rank()
        # heartbeats come from a thread of their own, and one client answers one call at a time
        self._post_store = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
        self._group = dist.new_group(backend="gloo", timeout=timeout)
        self.world_size = dist.get_world_size()
        # anybody who reaches the store may write there: what is signed with this was written by a rank
        self._secret: bytes = self.broadcast(secrets.token_bytes(_SECRET_BYTES))
        self._last_posts = [""] * self.world_size
        # from here on all posts are there, and are read in one request
        self.post("")
        self.barrier()
        self.local_rank = launch.local_rank if launch.local_rank is not None else self._count_local_rank()

    def _count_local_rank(self) -> int:
        return count_local_rank(self.rank, self.gather(socket.gethostname()))

    def gather(self, value: Any) -> list[Any]:
        """By one collective, where no value is larger than the largest of the last time; torch's own takes two.

        Each rank sends the size of its value and as much of it as there was room for. All see all sizes, so that all know
        alike whether to do it again with more room.
        """
        import torch

        packed = pickle.dumps(value)
        size = len(packed).to_bytes(_HEADER_BYTES, "little")
        while True:
            room = self._room
            mine = torch.frombuffer(bytearray(size + packed[:room].ljust(room)), dtype=torch.uint8)
            everything = torch.empty(self.world_size * len(mine), dtype=torch.uint8)
            self._dist.all_gather_into_tensor(everything, mine, group=self._group)
            sent = [bytes(part.numpy()) for part in everything.chunk(self.world_size)]
            sizes = [int.from_bytes(part[:_HEADER_BYTES], "little") for part in sent]
            needed = max(_MIN_ROOM, 1 << (max(sizes) - 1).bit_length())
            # small values and larger ones take turns: room for these is kept, up to a limit
            self._room = max(needed, min(self._room, _MOST_KEPT_ROOM))
            if max(sizes) <= room:
                return [pickle.loads(part[_HEADER_BYTES:]) for part in sent]

    def broadcast(self, value: Any, *, source: int = 0) -> Any:
        box = [value]
        self._dist.broadcast_object_list(box, src=source, group=self._group)
        return box[0]

    def barrier(self) -> None:
        self._dist.barrier(group=self._group)

    def take_ticket(self, queue: str) -> int:
        store = self._dist.distributed_c10d._get_default_store()
        return int(store.add(f"kappaspeech/{queue}", 1)) - 1

    def post(self, text: str) -> None:
        self._post_store.set(f"kappaspeech/post/{self.rank}", self._sign(self.rank, text) + text)

    def read_posts(self) -> list[str]:
        keys = [f"kappaspeech/post/{rank}" for rank in range(self.world_size)]
        # what isn't there, because somebody removed it, would be waited for
        if self._post_store.check(keys):
            found = self._post_store.multi_get(keys)
        else:
            found = [self._post_store.get(key) if self._post_store.check([key]) else b"" for key in keys]
        for rank, content in enumerate(found):
            signed = content.decode(errors="replace")
            signature, text = signed[:_SIGNATURE_LETTERS], signed[_SIGNATURE_LETTERS:]
            if hmac.compare_digest(signature.encode(), self._sign(rank, text).encode()):
                self._last_posts[rank] = text
        return list(self._last_posts)

    def _sign(self, rank: int, text: str) -> str:
        return hmac.new(self._secret, f"{rank}/{text}".encode(errors="replace"), hashlib.sha256).hexdigest()

    def move(self, array: FloatArray | None, *, source: int, target: int) -> FloatArray | None:
        if source == target or self.rank not in (source, target):
            return array if self.rank == target else None
        import numpy as np
        import torch

        if self.rank == source:
            assert array is not None
            # the transposed view of a Fortran-ordered array is contiguous
            tensor = torch.from_numpy(array.T)
            self._dist.send(torch.tensor([len(tensor)]), dst=target, group=self._group)
            self._dist.send(tensor, dst=target, group=self._group)
            return None
        size = torch.zeros(1, dtype=torch.int64)
        self._dist.recv(size, src=source, group=self._group)
        received = np.empty((int(size), int(size)), order="F")
        self._dist.recv(torch.from_numpy(received.T), src=source, group=self._group)
        return received

    def leave_by(self, leave: Callable[[], None], *, server: Any) -> TorchCluster:
        """Let `close` destroy the world by `leave`, for a library that keeps references to its groups, and then its `server`."""
        self._leave_world, self._server = leave, server
        return self

    def close(self) -> None:
        if not self._dist.is_initialized():
            return
        # the store that all others ask is rank 0's
        self.barrier()
        # A group's threads end with the last reference to it. Where they outlive the interpreter, they abort the process.
        del self._group, self._post_store
        self._leave_world()
        self._server = None
        gc.collect()


def start_cluster(*, backend: Literal["torch", "mpi"] = "torch", timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> Cluster:
    """Join the ranks that this process was launched with; alone, a world of one. Raises `ConfigError`."""
    launch = find_launch(os.environ)
    if backend == "mpi":
        from kappaspeech.mpi_cluster import MpiCluster

        return MpiCluster(launch)
    if launch.world_size == 1:
        return SingleProcess()
    if HUB_VARIABLE in os.environ:
        return LocalCluster(launch)
    prepare_rendezvous(launch)
    return TorchCluster(launch, timeout_seconds=timeout_seconds)


def start_training_cluster(*, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> TorchCluster:
    """Join the ranks through DeepSpeed, also as a world of one, without compiling anything.

    On a CPU, DeepSpeed would build its shared-memory all-reduce at start-up (a minute or two; killed half-way it leaves a
    lock that hangs every later run). Nothing here uses it.
    """
    import torch

    launch = find_launch(os.environ)
    if launch.world_size == 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(free_port()))
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

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    with explained_meeting(launch):
        if store is not None:
            # DeepSpeed joins what it finds; it is imported first, since its defaults keep a world that is there for ever
            torch.distributed.init_process_group(
                backend, store=store, rank=launch.rank, world_size=launch.world_size, timeout=timeout
            )
        deepspeed.init_distributed(dist_backend=backend, verbose=False, timeout=timeout)
    return TorchCluster(launch, timeout_seconds=timeout_seconds).leave_by(deepspeed.comm.destroy_process_group, server=server)


def _meet_for_local_rank(launch: Launch, *, timeout: timedelta) -> tuple[Launch, Any]:
    """Count the ranks before this one on its host; return that with the store where the ranks met.

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
    """The GPU of a rank: its host's next one, or the only one where each rank was given one (srun --gpus-per-task=1)."""
    assert launch.local_rank is not None
    if num_visible > 1 and launch.local_rank >= num_visible:
        raise ConfigError(
            f"Rank {launch.rank} is number {launch.local_rank + 1} of those on {socket.gethostname()}, which shows it "
            f"{num_visible} GPUs. Start as many ranks a host as it has GPUs."
        )
    return 0 if num_visible == 1 else launch.local_rank


_AGREED = "_known_to_all_ranks"
# Parts of what gloo, NCCL, their store, MPI and this project say when another rank has gone away in a collective.
_BROKEN_COLLECTIVE_WORDS = (
    "gloo",
    "nccl",
    "connect",
    "timed out",
    "timeout",
    "process group",
    "store",
    "mpi_",
    "a rank ended",
    "is gone",
)


def is_broken_collective(error: BaseException) -> bool:
    """Whether an error tells of another rank's end and not of a fault here. Libraries have no type for it."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _BROKEN_COLLECTIVE_WORDS)


def is_agreed(error: BaseException) -> bool:
    """Whether an `agreement` raised this error, so that every rank knows of it."""
    return getattr(error, _AGREED, False)


@contextlib.contextmanager
def agreement(cluster: Cluster) -> Iterator[None]:
    """Run a block that may fail on some ranks; where it did, raise on every rank after it.

    The lowest rank that failed raises its own error, the others a `RankFailure` that names it, so that a cause that all
    ranks share is told once. No collective may stand inside the block: a rank that failed early wouldn't reach it.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever the cause, the other ranks must hear of it
        failure = error
    _settle(cluster, failure, None)


def agree(cluster: Cluster, make: Callable[[], T]) -> list[T]:
    """Every rank's `make()`, in rank order, on every rank; where it failed on some, raise on every rank as `agreement` does.

    One collective, where a block in `agreement` and a gather after it are two.
    """
    failure: Exception | None = None
    value: Any = None
    try:
        value = make()
    except Exception as error:  # noqa: BLE001 - whatever the cause, the other ranks must hear of it
        failure = error
    return _settle(cluster, failure, value)


def _settle(cluster: Cluster, failure: Exception | None, value: Any) -> list[Any]:
    """Exchange how it went on each rank: raise on all where it failed on one, else every rank's `value`."""
    status = None
    if failure is not None:
        code = failure.exit_code if isinstance(failure, KappaSpeechError) else 1
        status = (f"{type(failure).__name__}: {failure}" if code == 1 else str(failure), code, socket.gethostname())
    settled = cluster.gather((status, value))
    for rank, (other, _) in enumerate(settled):
        if other is not None:
            if failure is not None and rank == cluster.rank:
                setattr(failure, _AGREED, True)
                raise failure
            raise RankFailure(rank, other[0], exit_code=other[1], host=other[2], is_told=True) from failure
    return [item for _, item in settled]
