"""The Hub of ``server.py`` with the part of the protocol that a push uses, and failures on call.

A commit writes into the repository's folder, so what was pushed can be downloaded at once.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from hub.server import COMMIT, Handler

TOKEN, USER = "hf_secretsecretsecret", "tester"
READING_TOKEN = "hf_onlyreadingallowed"
LFS_ENDINGS = (".safetensors", ".onnx", ".parquet", ".png")
REPOSITORY = r"/api/(models|datasets)/([^/]+/[^/]+)"


@dataclass
class Fault:
    """What happens instead of an answer.

    Attributes:
        route: a part of the path.
        what: a status code; ``cut`` (the connection ends in the middle of the request); ``stall``
            (no answer).
        times: how often; later requests are answered.
    """

    route: str
    what: int | str
    times: int = 1_000


@dataclass
class Hub:
    """A running server, and what it has seen."""

    url: str
    root: Path
    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    """Of commits."""
    private: set[str] = field(default_factory=set)
    fault: Fault | None = None

    def files(self, name: str) -> dict[str, bytes]:
        """What a model's repository has."""
        folder = self.root / "models" / name
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


class WritingHandler(Handler):
    """Answers reads as ``Handler``, and writes that have the token."""

    hub: Hub

    def do_GET(self) -> None:  # noqa: N802
        path = unquote(urlsplit(self.path).path)
        if self.fails(path):
            return
        if path == "/api/whoami-v2":
            if self.allowed():
                self.send(200, {"type": "user", "name": USER, "orgs": [], "auth": {}})
            return
        if path.endswith("/auth-check/write"):
            self.requests.append(f"GET {path}")
            if self.allowed():
                self.send(200, {})
            return
        name = re.sub(r"^/(api/)?(models/|datasets/)?", "", path)
        hidden = any(name.startswith(f"{private}/") for private in self.hub.private)
        if hidden and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.send(401, {"error": "no token"}, {"X-Error-Code": "RepoNotFound"})
            return
        super().do_GET()

    def do_POST(self) -> None:  # noqa: N802
        path = unquote(urlsplit(self.path).path)
        if self.fails(path):
            return
        if path == "/api/validate-yaml":
            self.body()
            self.send(200, {"errors": [], "warnings": []})
            return
        match = re.fullmatch(REPOSITORY + r"/(preupload|commit)/[^/]+", path)
        if path != "/api/repos/create" and match is None and not path.endswith("/objects/batch"):
            super().do_GET()  # a read with a body
            return
        self.requests.append(f"POST {path}")
        body = self.body()
        if not self.allowed():
            return
        if path == "/api/repos/create":
            self.create(json.loads(body))
        elif match is None:
            self.batch(json.loads(body))
        elif self.repository(match[1], match[2]) is None:
            return
        elif match[3] == "preupload":
            modes = [
                {"path": f["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if f["path"].endswith(LFS_ENDINGS) else "regular"}
                for f in json.loads(body)["files"]
            ]  # fmt: skip
            self.send(200, {"files": modes, "commitOid": COMMIT})
        else:
            self.commit(match[1], match[2], body)

    def do_PUT(self) -> None:  # noqa: N802
        if self.fails(self.path):
            return
        data = self.body()
        digest = hashlib.sha256(data).hexdigest()
        assert self.path == f"/_lfs/{digest}"
        store = self.root / "_lfs"
        store.mkdir(exist_ok=True)
        (store / digest).write_bytes(data)
        self.send(200, b"")

    # ---- routes ----------------------------------------------------------------------------------

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        folder = self.root / f"{asked.get('type', 'model')}s" / name
        url = f"http://{self.headers['Host']}/{name}"
        if folder.is_dir():
            self.send(409, {"error": "You already created this repo", "url": url})
            return
        folder.mkdir(parents=True)
        if asked.get("private") or asked.get("visibility") == "private":
            self.hub.private.add(name)
        self.send(200, {"url": url, "name": name})

    def batch(self, asked: dict[str, Any]) -> None:
        host = f"http://{self.headers['Host']}"
        objects = [
            {"oid": o["oid"], "size": o["size"],
             "actions": {"upload": {"href": f"{host}/_lfs/{o['oid']}", "header": {}}}}
            for o in asked["objects"]
        ]  # fmt: skip
        self.send(200, {"transfer": "basic", "objects": objects})

    def commit(self, kind: str, name: str, body: bytes) -> None:
        folder = self.root / kind / name
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.hub.messages.append(f"{value['summary']}\n{value.get('description', '')}")
                continue
            path = folder / value["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            if line["key"] == "file":
                path.write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                path.write_bytes((self.root / "_lfs" / value["oid"]).read_bytes())
        url = f"http://{self.headers['Host']}/{name}/commit/{COMMIT}"
        self.send(200, {"success": True, "commitUrl": url, "commitOid": COMMIT, "hookOutput": ""})

    # ---- requests --------------------------------------------------------------------------------

    def allowed(self) -> bool:
        token = self.headers.get("Authorization")
        if token == f"Bearer {TOKEN}":
            return True
        if token == f"Bearer {READING_TOKEN}":
            self.send(403, {"error": "You don't have the rights to write"})
        else:
            self.send(401, {"error": "Invalid user token"})
        return False

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def fails(self, path: str) -> bool:
        fault = self.hub.fault
        if fault is None or fault.route not in path or fault.times == 0:
            return False
        fault.times -= 1
        self.requests.append(f"{self.command} {path} fails: {fault.what}")
        self.close_connection = True
        if isinstance(fault.what, int):
            self.body()
            self.send(fault.what, {"error": "as the test asked for"}, {"Connection": "close"})
        elif fault.what == "cut":
            self.rfile.read(10)
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.server.stalled.wait(60)  # type: ignore[attr-defined]
        return True


@contextmanager
def writable_hub(root: Path) -> Iterator[Hub]:
    """Serve ``root`` while the context lasts."""
    hub = Hub("", root)
    handler = type(
        "RootHandler", (WritingHandler,), {"root": root, "requests": hub.requests, "hub": hub}
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.stalled = threading.Event()  # type: ignore[attr-defined]
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.stalled.set()  # type: ignore[attr-defined]
        with suppress(OSError):
            server.shutdown()
            server.server_close()
