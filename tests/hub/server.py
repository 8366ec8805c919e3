"""A read-only Hub on this machine: the part of its HTTP protocol that downloads use.

A repository is a folder: ``root/models/owner/name`` or ``root/datasets/owner/name``.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0" * 40
FILE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)")
API = re.compile(
    r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+))?(.*)"
)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path
    requests: list[str]

    def log_message(self, *_: Any) -> None:
        """Stay quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        path = unquote(urlsplit(self.path).path)
        self.requests.append(f"{self.command} {path}")
        if match := FILE.fullmatch(path):
            self.send_repository_file(match[1] or "models", match[2], match[3])
        elif match := API.fullmatch(path):
            self.answer(match[1], match[2], match[3], match[5].strip("/"), body)
        else:
            self.send(404, {"error": "no such route"})

    def repository(self, kind: str, name: str) -> Path | None:
        folder = self.root / kind / name
        if folder.is_dir():
            return folder
        self.send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        return None

    def send_repository_file(self, kind: str, name: str, path: str) -> None:
        folder = self.repository(kind, name)
        if folder is None:
            return
        if not (folder / path).is_file():
            missing = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
            self.send(404, {"error": "Entry not found"}, missing)
            return
        data = (folder / path).read_bytes()
        self.send(200, data, {"X-Repo-Commit": COMMIT, "ETag": f'"{sha1(data)}"'})

    def answer(self, kind: str, name: str, verb: str | None, below: str, body: str) -> None:
        folder = self.repository(kind, name)
        if folder is None:
            return
        entries = [entry(folder, path) for path in sorted(folder.rglob("*"))]
        if verb == "tree":
            inside = [e for e in entries if not below or e["path"].startswith(f"{below}/")]
            if below and not inside:
                self.send(404, {"error": "not there"}, {"X-Error-Code": "EntryNotFound"})
                return
            recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0]
            if recursive.lower() != "true":
                inside = [e for e in inside if "/" not in e["path"][len(below) :].strip("/")]
            self.send(200, inside)
        elif verb == "paths-info":
            asked = json.loads(body) if body.startswith("{") else parse_qs(body)
            self.send(200, [e for e in entries if e["path"] in asked.get("paths", [])])
        else:
            files = [e["path"] for e in entries if e["type"] == "file"]
            siblings = [{"rfilename": path} for path in files]
            known = {"id": name, "sha": COMMIT, "private": False, "tags": [], "downloads": 0}
            self.send(200, {**known, "siblings": siblings})

    def send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def entry(folder: Path, path: Path) -> dict[str, Any]:
    name = str(path.relative_to(folder))
    if path.is_dir():
        return {"type": "directory", "path": name, "size": 0, "oid": sha1(name.encode())}
    data = path.read_bytes()
    return {"type": "file", "path": name, "size": len(data), "oid": sha1(data)}


def sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextmanager
def hub(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve ``root`` while the context lasts; its address, and what was asked for so far."""
    requests: list[str] = []
    handler = type("RootHandler", (Handler,), {"root": root, "requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        server.server_close()
