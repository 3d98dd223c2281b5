"""A double of the Hugging Face hub's HTTP API on loopback: repositories, uploads of large files, commits. It can cut a line."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

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


def _send(request: Any, status: int, content: Any) -> None:
    body = json.dumps(content).encode()
    request.send_response(status)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def _digest(body: bytes) -> str:
    return hashlib.sha1(body, usedforsecurity=False).hexdigest()


class FakeDatasets:
    """The hub's answers on one data set: its files by revision and path; `fetched` are those that were asked for."""

    def __init__(self, name: str, files: dict[str, dict[str, bytes]]) -> None:
        self.fetched: list[str] = []
        self.status = 200
        hub = self
        commits = {revision: f"{number:040x}" for number, revision in enumerate(files, start=1)}
        by_commit = {commits[revision]: content for revision, content in files.items()}

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.do_GET(wants_body=False)

            def do_GET(self, *, wants_body: bool = True) -> None:
                path = unquote(self.path.partition("?")[0])
                if hub.status != 200 or name not in path:
                    return self.refuse(hub.status if hub.status != 200 else 404, "RepoNotFound")
                kind, _, rest = path.partition(name)[2].strip("/").partition("/")
                if kind == "revision" or not kind:
                    return self.tell(rest or "main")
                if kind == "tree":
                    entries = [
                        {"type": "file", "path": file, "size": len(body), "oid": _digest(body)}
                        for file, body in by_commit[rest].items()
                    ]
                    return _send(self, 200, entries)
                commit, _, file = rest.partition("/")
                return self.give(commit, file, wants_body=wants_body)

            def tell(self, revision: str) -> None:
                if revision not in commits:
                    return self.refuse(404, "RevisionNotFound")
                siblings = [{"rfilename": file} for file in files[revision]]
                return _send(self, 200, {"id": name, "sha": commits[revision], "siblings": siblings})

            def give(self, commit: str, file: str, *, wants_body: bool) -> None:
                body = by_commit[commit][file]
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("ETag", f'"{_digest(body)}"')
                self.send_header("X-Repo-Commit", commit)
                self.end_headers()
                if wants_body:
                    hub.fetched.append(file)
                    self.wfile.write(body)

            def refuse(self, status: int, code: str) -> None:
                self.send_response(status)
                if status == 404:
                    self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", "0")
                self.end_headers()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FakeDatasets:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
