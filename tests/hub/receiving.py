"""A hub on this machine that takes uploads, and the storage of another host that it sends large files to.

It speaks as much of the hub's interface as creating a repository and committing to it over Git LFS asks for.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from huggingface_hub import close_session

COMMIT = "c" * 40


@dataclass(frozen=True)
class Asked:
    """One request, with the token that came with it."""

    what: str  # method and path
    token: str | None
    body: bytes


class Host(ThreadingHTTPServer):
    """One host, and everything that it was asked; ``refused`` is a part of the paths that it answers 403."""

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.asked: list[Asked] = []
        self.refused: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Receiving(Host):
    """A hub; ``files`` are those of the one commit, by name, as they have arrived."""

    def __init__(self) -> None:
        super().__init__(_HubHandler)
        self.storage = Host(_Handler)
        self.created: list[dict[str, object]] = []
        self.files: dict[str, bytes] = {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Host

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or self._chunks()
        path = self.path.partition("?")[0]
        self.server.asked.append(Asked(f"{self.command} {path}", self.headers.get("Authorization"), body))
        if self.server.refused and self.server.refused in path:
            self._send(403, {"error": "you may not"})
        else:
            self._send(200, self.answer(path, body))

    do_PUT = do_POST

    def _chunks(self) -> bytes:
        content = b""
        while "chunked" in self.headers.get("Transfer-Encoding", ""):
            size = int(self.rfile.readline(), 16)
            content += self.rfile.read(size)
            self.rfile.readline()
            if not size:
                break
        return content

    def answer(self, path: str, body: bytes) -> dict[str, object]:
        return {}

    def _send(self, status: int, said: dict[str, object]) -> None:
        content = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class _HubHandler(_Handler):
    server: Receiving

    def answer(self, path: str, body: bytes) -> dict[str, object]:
        if path == "/api/repos/create":
            self.server.created.append(wanted := json.loads(body))
            name = f"{wanted['organization']}/{wanted['name']}"
            return {"url": f"{self.server.url}/{name}", "id": name}
        if path.endswith("/preupload/main"):
            return {"files": [_mode(each) for each in json.loads(body)["files"]]}
        if path.endswith(".git/info/lfs/objects/batch"):
            return {"transfer": "basic", "objects": [self._place(each) for each in json.loads(body)["objects"]]}
        if path.endswith("/commit/main"):
            self._take([json.loads(line) for line in body.splitlines()])
            repository = path.removeprefix("/api/models/").removesuffix("/commit/main")
            return {"commitUrl": f"{self.server.url}/{repository}/commit/{COMMIT}", "commitOid": COMMIT}
        return {}

    def _place(self, wanted: dict[str, object]) -> dict[str, object]:
        """Send a large file to the storage by an address that needs no token, and have it confirmed here."""
        actions = {
            "upload": {"href": f"{self.server.storage.url}/signed/{wanted['oid']}"},
            "verify": {"href": f"{self.server.url}/verify"},
        }
        return wanted | {"actions": actions}

    def _take(self, lines: list[dict[str, object]]) -> None:
        stored = {hashlib.sha256(each.body).hexdigest(): each.body for each in self.server.storage.asked}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[value["path"]] = stored[value["oid"]]


def _mode(file: dict[str, object]) -> dict[str, object]:
    return {
        "path": file["path"],
        "uploadMode": "lfs" if str(file["path"]).endswith(".safetensors") else "regular",
        "shouldIgnore": False,
        "oid": None,
    }


@contextmanager
def receiving() -> Iterator[Receiving]:
    """A hub without repositories, until the end of the block."""
    hub = Receiving()
    for host in (hub, hub.storage):
        threading.Thread(target=host.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        for host in (hub, hub.storage):
            close_session()
            host.shutdown()
            host.server_close()
