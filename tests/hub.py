"""A double of the Hugging Face hub's HTTP API on loopback: repositories, uploads of large files, commits. It can cut a line."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_aTokenThatNobodyMaySee"


class FakeHub:
    """Files by repository and path, as committed; `objects` are large files by digest, also those of no commit yet.

    Uploads of the object `cut` break off in their middle, and `refusal` is a status that every request gets.
    """

    def __init__(self, *, cut: str | None = None, refusal: int | None = None) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.is_private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.commits: list[str] = []
        self.cut = cut
        self.refusal = refusal
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                hub.answer_post(self)

            def do_PUT(self) -> None:
                hub.answer_put(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer_post(self, request: Any) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        if self.refusal is not None or request.headers.get("Authorization") not in (f"Bearer {TOKEN}", None):
            return _send(request, self.refusal or 401, {"error": "no entry"})
        path = request.path
        if path == "/api/repos/create":
            return self._create(request, json.loads(body))
        if path == "/api/validate-yaml":
            return _send(request, 200, {"errors": [], "warnings": []})
        if "/preupload/" in path:
            modes = [
                {"path": file["path"], "uploadMode": _mode(file["path"]), "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return _send(request, 200, {"files": modes})
        if path.endswith("/info/lfs/objects/batch"):
            return _send(
                request, 200, {"transfer": "basic", "objects": [self._offer(item) for item in json.loads(body)["objects"]]}
            )
        assert path.endswith("/commit/main"), path
        return self._commit(request, path.removeprefix("/api/models/").removesuffix("/commit/main"), body)

    def answer_put(self, request: Any) -> None:
        length = int(request.headers["Content-Length"])
        digest = request.path.rpartition("/")[2]
        if digest == self.cut:
            request.rfile.read(length // 2)
            request.connection.close()
            return
        content = request.rfile.read(length)
        assert hashlib.sha256(content).hexdigest() == digest
        self.objects[digest] = content
        self.uploads.append(digest)
        _send(request, 200, {})

    def _create(self, request: Any, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        there = name in self.files
        self.files.setdefault(name, {})
        self.is_private.setdefault(name, bool(asked.get("private") or asked.get("visibility") == "private"))
        _send(request, 409 if there else 200, {"url": f"{self.endpoint}/{name}", "name": name})

    def _offer(self, item: dict[str, Any]) -> dict[str, Any]:
        upload = {"upload": {"href": f"{self.endpoint}/upload/{item['oid']}", "header": {}}}
        return {**item, **({} if item["oid"] in self.objects else {"actions": upload})}

    def _commit(self, request: Any, name: str, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.commits.append(value["summary"])
            elif line["key"] == "file":
                self.files[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[name][value["path"]] = self.objects[value["oid"]]
        place = f"{self.endpoint}/{name}/commit/{len(self.commits):040x}"
        _send(request, 200, {"success": True, "commitOid": f"{len(self.commits):040x}", "commitUrl": place})


def _mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"


def _send(request: Any, status: int, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    request.send_response(status)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)
