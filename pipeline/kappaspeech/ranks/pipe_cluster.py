"""Ranks of one machine that their common parent connects: no port, no rendezvous, and no torch to load.

Importing torch and its distributed part takes each worker of a scan 1.0 s of a core, and 182 MB instead of 66 MB (PyTorch for
CPUs, x86).

The parent's `Hub` holds two socket pairs per rank, and the rank inherits the other ends. One is for its work, which may wait in a
collective; one is for its heartbeat, which may not. Nobody else can reach them, so values may be pickled.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kappaspeech.ranks.cluster import SquareArray
    from kappaspeech.ranks.rendezvous import Launch

HUB_VARIABLE = "KAPPASPEECH_HUB"


class Hub:
    """The server of the ranks that its process starts. A rank inherits its `file_descriptors`, and is given their numbers."""

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._changed = threading.Condition()
        self._tickets: dict[str, int] = {}
        self._posts = [""] * world_size
        self._boxes: dict[tuple[str, int], dict[int, Any]] = {}
        self._read: dict[tuple[str, int], int] = {}
        # in the order in which they ended: the first one causes the later ends
        self._gone: list[int] = []
        self._far: list[list[socket.socket]] = []
        for rank in range(world_size):
            pairs = [socket.socketpair() for _ in range(2)]
            self._far.append([far for _, far in pairs])
            for near, _ in pairs:
                threading.Thread(target=self._serve, args=(rank, Connection(near.detach())), daemon=True).start()

    def file_descriptors(self, rank: int) -> tuple[int, ...]:
        """The file descriptors that `rank` must inherit."""
        return tuple(far.fileno() for far in self._far[rank])

    def environment(self, rank: int) -> dict[str, str]:
        """The variables by which `rank` finds the hub."""
        return {HUB_VARIABLE: ",".join(map(str, self.file_descriptors(rank)))}

    def close_far_ends(self) -> None:
        """Close the ranks' ends here, once all ranks have started: then a rank's end shows as the end of its connections."""
        for ends in self._far:
            for far in ends:
                far.close()

    def _serve(self, rank: int, connection: Connection) -> None:
        try:
            while True:
                kind, *arguments = connection.recv()
                connection.send(getattr(self, f"_on_{kind}")(rank, *arguments))
        except (EOFError, OSError):
            with self._changed:
                if rank not in self._gone:
                    self._gone.append(rank)
                self._changed.notify_all()

    def _on_ticket(self, _rank: int, queue: str) -> int:
        with self._changed:
            self._tickets[queue] = self._tickets.get(queue, -1) + 1
            return self._tickets[queue]

    def _on_post(self, rank: int, text: str) -> None:
        self._posts[rank] = text

    def _on_posts(self, _rank: int) -> list[str]:
        return [self._mark(rank, post) for rank, post in enumerate(self._posts)]

    def _mark(self, rank: int, post: str) -> str:
        """The post of a rank, marked as that of the first to go if it gave no cause itself."""
        if self._gone[:1] != [rank] or not post:
            return post
        status = json.loads(post)
        if status.get("cause") is None:
            doing = f" while measuring {status['doing']}" if status.get("doing") else ""
            status["cause"] = f"it ended without a word{doing}", 1
        return json.dumps(status)

    def _on_gather(self, rank: int, turn: int, value: Any) -> list[Any] | None:
        """Every rank's value, once all have come; None if one is gone."""
        key = ("gather", turn)
        with self._changed:
            box = self._boxes.setdefault(key, {})
            box[rank] = value
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(box) == self._world_size or not box.keys() >= set(self._gone))
            if len(box) < self._world_size:
                return None
            self._read[key] = self._read.get(key, 0) + 1
            if self._read[key] == self._world_size:
                del self._boxes[key], self._read[key]
            return [box[other] for other in range(self._world_size)]

    def _on_give(self, rank: int, turn: int, value: Any) -> None:
        with self._changed:
            self._boxes["move", turn] = {rank: value}
            self._changed.notify_all()

    def _on_take(self, _rank: int, turn: int, source: int) -> Any:
        key = ("move", turn)
        with self._changed:
            self._changed.wait_for(lambda: key in self._boxes or source in self._gone)
            return self._boxes.pop(key, {}).get(source)


class PipeCluster:
    """A rank of a `Hub`, as a `Cluster`. If a rank is gone, whoever waits for it gets a `RuntimeError`."""

    def __init__(self, launch: Launch) -> None:
        work, beat = map(int, os.environ[HUB_VARIABLE].split(","))
        # all ranks are on this host
        self.rank, self.world_size, self.local_rank = launch.rank, launch.world_size, launch.rank
        self._work, self._beat = Connection(work), Connection(beat)
        self._lock = threading.Lock()
        self._turn = 0

    def _ask(self, *message: Any) -> Any:
        try:
            self._work.send(message)
            return self._work.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError("the process that started the ranks is gone") from error

    def _ask_beside(self, *message: Any) -> Any:
        with self._lock:
            self._beat.send(message)
            return self._beat.recv()

    def gather(self, value: Any) -> list[Any]:
        self._turn += 1
        values: list[Any] | None = self._ask("gather", self._turn, value)
        if values is None:
            raise RuntimeError("a rank ended before all had gathered")
        return values

    def broadcast(self, value: Any, *, source: int = 0) -> Any:
        return self.gather(value if self.rank == source else None)[source]

    def barrier(self) -> None:
        self.gather(None)

    def take_ticket(self, queue: str) -> int:
        return int(self._ask("ticket", queue))

    def post(self, text: str) -> None:
        self._ask_beside("post", text)

    def read_posts(self) -> list[str]:
        posts: list[str] = self._ask_beside("posts")
        return posts

    def move(self, array: SquareArray | None, *, source: int, target: int) -> SquareArray | None:
        self._turn += 1
        if source == target or self.rank not in (source, target):
            return array if self.rank == target else None
        if self.rank == source:
            self._ask("give", self._turn, array)
            return None
        received: SquareArray | None = self._ask("take", self._turn, source)
        if received is None:
            raise RuntimeError("a rank ended before it had sent what was expected")
        import numpy as np  # not before BLAS has been set up

        return np.asfortranarray(received)

    def patient(self) -> PipeCluster:
        return self

    def close(self) -> None:
        self._work.close()
        self._beat.close()
