"""Ranks of a `torch.distributed` world, as training has them."""

from __future__ import annotations

import copy
import gc
import hashlib
import hmac
import pickle
import secrets
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from kappaspeech.ranks.cluster import DEFAULT_TIMEOUT_SECONDS
from kappaspeech.ranks.listening import open_store
from kappaspeech.ranks.rendezvous import Launch, count_local_rank, explained_meeting

if TYPE_CHECKING:
    from kappaspeech.ranks.cluster import SquareArray

# Bytes of what each rank gathers: its size, and at least this much room for it.
_HEADER_BYTES = 8
_MIN_ROOM = 4096
_MOST_KEPT_ROOM = 1 << 16
_SECRET_BYTES = 32
_SIGNATURE_LETTERS = 64
_PATIENCE = timedelta(days=7)


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
        # anybody who reaches the store may write there: a post signed with this was written by a rank
        self._secret: bytes = self.broadcast(secrets.token_bytes(_SECRET_BYTES))
        self._last_posts = [""] * self.world_size
        # from here on all posts are there, and are read in one request
        self.post("")
        self.barrier()
        self.local_rank = launch.local_rank if launch.local_rank is not None else self._count_local_rank()

    def _count_local_rank(self) -> int:
        return count_local_rank(self.rank, self.gather(socket.gethostname()))

    def gather(self, value: Any) -> list[Any]:
        """Gather by one collective if no value is larger than the largest of the last time; torch's own takes two.

        Each rank sends the size of its value and as much of it as there was room for. All see all sizes, so all decide alike
        whether to do it again with more room.
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
        # reading a post that isn't there, because somebody removed it, would wait
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

    def move(self, array: SquareArray | None, *, source: int, target: int) -> SquareArray | None:
        if source == target or self.rank not in (source, target):
            return array if self.rank == target else None
        import numpy as np
        import torch

        if self.rank == source:
            assert array is not None
            # the transposed view of a Fortran-ordered array is contiguous
            tensor = torch.from_numpy(array.T)
            self._dist.send(torch.tensor([len(tensor), array.dtype.itemsize]), dst=target, group=self._group)
            self._dist.send(tensor, dst=target, group=self._group)
            return None
        head = torch.zeros(2, dtype=torch.int64)
        self._dist.recv(head, src=source, group=self._group)
        size, num_bytes = head.tolist()
        received = np.empty((size, size), f"f{num_bytes}", order="F")
        self._dist.recv(torch.from_numpy(received.T), src=source, group=self._group)
        return received

    def beside(self) -> TorchCluster:
        """The same ranks over a group of their own, for collectives in one thread beside those of others. A collective.

        It waits as long as it takes: ranks may have work of any length between their collectives there. A rank's end breaks it as
        it does any other. It is closed with this cluster.
        """
        other = copy.copy(self)
        other._group = self._dist.new_group(backend="gloo", timeout=_PATIENCE)
        return other

    def patient(self) -> TorchCluster:
        return self.beside()

    def leave_by(self, leave: Callable[[], None], *, server: Any) -> TorchCluster:
        """Let `close` destroy the world by `leave`, for a library that keeps references to its groups, and then its `server`."""
        self._leave_world, self._server = leave, server
        return self

    def close(self) -> None:
        if not self._dist.is_initialized():
            return
        # the store that all others ask is rank 0's
        self.barrier()
        # A group's threads end with the last reference to it. If they outlive the interpreter, they abort the process.
        del self._group, self._post_store
        self._leave_world()
        self._server = None
        gc.collect()
