"""Ranks of an MPI world, for `mpirun` without a rendezvous: the same `Cluster` over mpi4py and one-sided windows."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

from kappaspeech.errors import ConfigError
from kappaspeech.ranks.cluster import MAX_POST_BYTES
from kappaspeech.ranks.rendezvous import Launch, count_local_rank, import_mpi

if TYPE_CHECKING:
    from kappaspeech.ranks.cluster import SquareArray

_POST_BYTES = MAX_POST_BYTES + 48
_MAX_QUEUES = 16
# One-sided operations reach a busy rank of another host only when that rank enters MPI: a thread there must look in.
_PROGRESS_SECONDS = 0.02


class MpiCluster:
    """Counters and posts lie in windows of rank 0, so taking a ticket interrupts nobody."""

    def __init__(self, launch: Launch) -> None:
        self._mpi = MPI = import_mpi()
        # a communicator of our own: messages of the progress thread and of the work can't meet
        self._comm = MPI.COMM_WORLD.Dup()
        self.rank, self.world_size = self._comm.Get_rank(), self._comm.Get_size()
        if launch.world_size != self.world_size:
            raise ConfigError(
                f"The launcher started {launch.world_size} processes ({launch.launcher}), but MPI sees {self.world_size}. Under "
                "srun give --mpi=pmix; with another MPI than mpi4py was built for, use that one's mpirun."
            )
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE and self.world_size > 1:
            raise ConfigError("This MPI was built without thread support (MPI_THREAD_MULTIPLE). Use --backend torch.")
        self.local_rank = launch.local_rank if launch.local_rank is not None else self._count_local_rank()
        here = self.rank == 0
        self._counters = MPI.Win.Allocate(8 * _MAX_QUEUES if here else 0, 8, comm=self._comm)
        self._posts = MPI.Win.Allocate(_POST_BYTES * self.world_size if here else 0, 1, comm=self._comm)
        if here:
            for window in (self._counters, self._posts):
                window.Lock(0)
                window.tomemory()[:] = bytes(len(window.tomemory()))
                window.Unlock(0)
        self._comm.Barrier()
        self._queues: dict[str, int] = {}
        self._closing = threading.Event()
        self._progress = threading.Thread(target=self._look_in, daemon=True)
        self._progress.start()

    def _count_local_rank(self) -> int:
        return count_local_rank(self.rank, self._comm.allgather(socket.gethostname()))

    def _look_in(self) -> None:
        while not self._closing.wait(_PROGRESS_SECONDS):
            self._comm.Iprobe()

    def gather(self, value: Any) -> list[Any]:
        gathered: list[Any] = self._comm.allgather(value)
        return gathered

    def broadcast(self, value: Any, *, source: int = 0) -> Any:
        return self._comm.bcast(value, root=source)

    def barrier(self) -> None:
        self._comm.Barrier()

    def take_ticket(self, queue: str) -> int:
        import numpy as np

        # ranks meet the queues in the same order, as they do collectives, so their places agree
        place = self._queues.setdefault(queue, len(self._queues))
        assert place < _MAX_QUEUES
        one, ticket = np.ones(1, dtype=np.int64), np.empty(1, dtype=np.int64)
        self._counters.Lock(0, self._mpi.LOCK_SHARED)
        self._counters.Fetch_and_op(one, ticket, 0, place, self._mpi.SUM)
        self._counters.Unlock(0)
        return int(ticket[0])

    def post(self, text: str) -> None:
        content = text.encode()
        assert len(content) <= MAX_POST_BYTES, f"a post of {len(content)} bytes"
        self._posts.Lock(0, self._mpi.LOCK_EXCLUSIVE)
        self._posts.Put([content.ljust(_POST_BYTES, b"\0"), self._mpi.BYTE], 0, self.rank * _POST_BYTES)
        self._posts.Unlock(0)

    def read_posts(self) -> list[str]:
        content = bytearray(_POST_BYTES * self.world_size)
        self._posts.Lock(0, self._mpi.LOCK_SHARED)
        self._posts.Get([content, self._mpi.BYTE], 0)
        self._posts.Unlock(0)
        slots = (bytes(content[begin : begin + _POST_BYTES]) for begin in range(0, len(content), _POST_BYTES))
        return [slot.rstrip(b"\0").decode() for slot in slots]

    def move(self, array: SquareArray | None, *, source: int, target: int) -> SquareArray | None:
        if source == target or self.rank not in (source, target):
            return array if self.rank == target else None
        if self.rank == source:
            assert array is not None
            self._comm.send((len(array), array.dtype.itemsize), dest=target)
            self._comm.Send([array, self._number_type(array.dtype.itemsize)], dest=target)
            return None
        import numpy as np

        size, num_bytes = self._comm.recv(source=source)
        received = np.empty((size, size), f"f{num_bytes}", order="F")
        self._comm.Recv([received, self._number_type(num_bytes)], source=source)
        return received

    def _number_type(self, num_bytes: int) -> Any:
        return {4: self._mpi.FLOAT, 8: self._mpi.DOUBLE}[num_bytes]

    def patient(self) -> MpiCluster:
        return self

    def close(self) -> None:
        self._closing.set()
        self._progress.join()
        self._comm.Barrier()
        self._counters.Free()
        self._posts.Free()
        self._comm.Free()
