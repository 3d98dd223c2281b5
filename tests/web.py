"""A web server on loopback that serves a folder by ranges, and fails as it is told to."""

from __future__ import annotations

import os
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.patience import patience


class FaultyServer:
    """`faults` are taken one a ranged request, then none: "500", "stall", "reset", "short", "whole", "404", "403", "drip",
    "endless", "damaged" (in its first byte), "moved" (another range), "grown" (another size of the file), "loop" (a redirect
    to itself).

    `ranges` are those that were asked for. Of a byte in `broken_bytes` every request is answered by 500. A file's request waits
    `latency_seconds`, and until `wanted_at_once` are there together; `most_at_once` is how many there were.

    `head_faults` the same for HEAD: a status, "stall", "reset", "loop", or "size N". `has_versions` sends ETag and Last-Modified;
    `wanted_query` is a signature without which a file is refused, and with which it is refused to HEAD.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: list[str] = []
        self.head_faults: list[str] = []
        self.always_head: str | None = None
        self.has_versions = True
        self.wanted_query: str | None = None
        self.always: str | None = None
        self.requests: Counter[str] = Counter()
        self.ranges: list[tuple[str, int, int]] = []
        self.broken_bytes: set[int] = set()
        self.latency_seconds = 0.0
        self.wanted_at_once = self.num_at_once = self.most_at_once = 0
        self.arrived = threading.Condition()
        self.num_heads = 0
        self.num_endless_bytes = 0
        self.lock = threading.Lock()
        self.released = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # else a short answer waits for the client's delayed acknowledgement of its headers, some 40 ms
            disable_nagle_algorithm = True

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self._answer(head=True)

            def do_GET(self) -> None:
                self._answer(head=False)

            def _answer(self, *, head: bool) -> None:
                name, _, query = self.path.lstrip("/").partition("?")
                path = owner.folder / name
                wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                fault = owner.next_head_fault() if head else owner.next_fault(f"/{name}") if wanted else None
                if not head:
                    owner.keep_waiting()
                if wanted and not head:
                    begin, end = int(wanted[1]), int(wanted[2]) + 1
                    owner.ranges.append((f"/{name}", begin, end))
                    fault = fault or ("500" if any(begin <= byte < end for byte in owner.broken_bytes) else None)
                if owner.wanted_query is not None and (head or query != owner.wanted_query):
                    fault = "403"
                if fault == "loop":
                    self.send_response(302)
                    self.send_header("Location", self.path)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if not path.is_file() or (fault or "").isdigit():
                    self.send_response(int(fault) if fault else 404)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                status = path.stat()
                if fault == "stall":
                    owner.released.wait(patience(30))
                    return
                if fault == "reset":
                    # a linger of 0 makes the close a reset
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.close_connection = True
                    os.close(self.connection.detach())
                    return
                begin, end = (int(wanted[1]), int(wanted[2]) + 1) if wanted and fault != "whole" else (0, status.st_size)
                if wanted and begin >= status.st_size:
                    self.send_response(416)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                with path.open("rb") as file:
                    file.seek(begin)
                    part = file.read(end - begin)
                if fault in ("short", "drip"):
                    part = part[: max(1, len(part) // 2) if fault == "short" else 1]
                if fault == "damaged":
                    part = bytes([part[0] ^ 1]) + part[1:]
                self.send_response(206 if wanted and fault != "whole" else 200)
                self.send_header("Accept-Ranges", "bytes")
                if fault != "endless":
                    length = fault.partition(" ")[2] if fault and fault.startswith("size ") else str(len(part))
                    self.send_header("Content-Length", length)
                if owner.has_versions:
                    self.send_header("ETag", f'"{status.st_mtime_ns}-{status.st_size}"')
                if wanted and fault != "whole":
                    shift, growth = int(fault == "moved"), int(fault == "grown")
                    said = f"{begin + shift}-{begin + shift + len(part) - 1}/{status.st_size + growth}"
                    self.send_header("Content-Range", f"bytes {said}")
                self.end_headers()
                try:
                    while fault == "endless":
                        owner.num_endless_bytes += self.wfile.write(bytes(1 << 16))
                except OSError:
                    return
                if not head:
                    self.wfile.write(part)

        class Server(ThreadingHTTPServer):
            # a connection that finds no place tries again after a second
            request_queue_size = 256

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def next_head_fault(self) -> str | None:
        with self.lock:
            self.num_heads += 1
            return self.always_head or (self.head_faults.pop(0) if self.head_faults else None)

    def next_fault(self, path: str) -> str | None:
        with self.lock:
            self.requests[path] += 1
            return self.always or (self.faults.pop(0) if self.faults else None)

    def keep_waiting(self) -> None:
        """Keep a request waiting as long as is asked."""
        with self.arrived:
            self.num_at_once += 1
            self.most_at_once = max(self.most_at_once, self.num_at_once)
            self.arrived.notify_all()
            self.arrived.wait_for(lambda: self.most_at_once >= self.wanted_at_once, timeout=patience(30))
        time.sleep(self.latency_seconds)
        with self.arrived:
            self.num_at_once -= 1

    def __enter__(self) -> FaultyServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """The block must end in time, on any machine."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < patience(seconds)
