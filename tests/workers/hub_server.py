"""A server on loopback that speaks as much of the Hub's protocol as fetching a model needs, and keeps count.

The real client libraries run against it. Knows nothing of models: it serves the files of folders.
"""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
TOKEN = "hf_" + "tOkEnOfAnAcCoUnT" * 2
STRANGER = "hf_" + "sTrAnGeRsToKeNs" * 2


class HubServer(AbstractContextManager):
    """Repositories (name: folder), each with one commit, `COMMIT`, on the branch main.

    gated: names whose files need `TOKEN`. `STRANGER` is the token of an account that has not accepted the licence; the
    Hub knows no others. Weights are sent while `release` is set.
    """

    def __init__(self, repositories: dict[str, Path], gated: tuple[str, ...] = ()) -> None:
        self.repositories, self.gated = repositories, gated
        self.requests: list[tuple[str, str]] = []
        """(method, path) in order of arrival."""
        self.release = threading.Event()
        self.release.set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                try:
                    server._answer(self)
                except ConnectionError:  # a client was killed
                    self.close_connection = True

            do_HEAD = do_GET

            def log_message(self, *_) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.block_on_close = False
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.1})
        self._thread.start()

    def __exit__(self, *_) -> None:
        self.release.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def count(self, method: str, file: str) -> int:
        """Requests for a file: HEAD asks about it, GET for its content."""
        return sum(m == method and "/resolve/" in path and path.endswith("/" + file) for m, path in self.requests)

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.requests.append((request.command, path))
        token = (request.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in ("", TOKEN, STRANGER):
            return self._refuse(request, 401, "", "Invalid credentials in Authorization header")
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        parts = parts[2:] if api else parts
        name = "/".join(parts[:2])
        if name not in self.repositories:
            return self._refuse(request, 404 if token else 401, "RepoNotFound", "Repository not found")
        folder = self.repositories[name]
        files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
        kind, revision = parts[2], parts[3]
        if revision not in ("main", COMMIT):
            return self._refuse(request, 404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if api and kind == "revision":
            info = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
            return self._send(request, json.dumps(info).encode())
        if api and kind == "tree":
            tree = []
            for file in files:
                data = (folder / file).read_bytes()
                tree.append({"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()})
            return self._send(request, json.dumps(tree).encode())
        if name in self.gated and token != TOKEN:
            return self._refuse(request, 403 if token else 401, "GatedRepo", "Access to this model is restricted")
        file = "/".join(parts[4:])
        if file not in files:
            return self._refuse(request, 404, "EntryNotFound", "Entry not found")
        if request.command == "GET" and file.endswith(".safetensors"):
            self.release.wait(240)
        data = (folder / file).read_bytes()
        self._send(request, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"')

    def _refuse(self, request: BaseHTTPRequestHandler, status: int, code: str, message: str) -> None:
        self._send(request, b"", status, **{"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, request: BaseHTTPRequestHandler, data: bytes, status: int = 200, **headers: str) -> None:
        request.send_response(status)
        headers |= {"X-Repo-Commit": COMMIT, "Content-Length": str(len(data))}
        for name, value in headers.items():
            if value:
                request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data)
