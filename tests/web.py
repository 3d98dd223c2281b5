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


class FaultyServer:
    """`faults` are taken one a ranged request, then none: "500", "stall", "reset", "short", "whole", "404", "403"."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: list[str] = []
        self.always: str | None = None
        self.requests: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.released = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self._answer(head=True)

            def do_GET(self) -> None:
                self._answer(head=False)

            def _answer(self, *, head: bool) -> None:
                path = owner.folder / self.path.lstrip("/")
                wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                fault = owner.next_fault(self.path) if wanted and not head else None
                if not path.is_file() or fault in ("404", "403", "500"):
                    self.send_response(int(fault) if fault else 404)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                status = path.stat()
                if fault == "stall":
                    owner.released.wait(30)
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
                if fault == "short":
                    part = part[: max(1, len(part) // 2)]
                self.send_response(206 if wanted and fault != "whole" else 200)
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Length", str(len(part)))
                self.send_header("ETag", f'"{status.st_mtime_ns}-{status.st_size}"')
                if wanted and fault != "whole":
                    self.send_header("Content-Range", f"bytes {begin}-{begin + len(part) - 1}/{status.st_size}")
                self.end_headers()
                if not head:
                    self.wfile.write(part)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def next_fault(self, path: str) -> str | None:
        with self.lock:
            self.requests[path] += 1
            return self.always or (self.faults.pop(0) if self.faults else None)

    def __enter__(self) -> FaultyServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """The block must end in time."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds
