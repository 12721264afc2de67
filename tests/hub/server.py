"""A Hugging Face hub on this machine: as much of its HTTP interface as downloading models and data sets asks for."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import close_session

Files = Mapping[str, bytes]
TOKEN = "hf_of_somebody_who_accepted"


def files_of(folder: Path) -> dict[str, bytes]:
    """The files at the top of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


@dataclass
class Repository:
    """Branches and commits of one model or data set."""

    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Files] = field(default_factory=dict)
    gated: bool = False

    def push(self, files: Files, branch: str = "main") -> str:
        """Commit ``files`` as all there is and move a branch there; returns the commit."""
        described = json.dumps({name: hashlib.sha1(content).hexdigest() for name, content in files.items()})
        commit = hashlib.sha1(described.encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.branches[branch] = commit
        return commit


class Hub(ThreadingHTTPServer):
    """Serves repositories by their path: ``owner/name`` of a model, ``datasets/owner/name`` of a data set.

    Attributes:
        asked: methods and paths of every request so far.
        stalled: path of a file of which half is sent and no more, until ``resumed`` is set.
        reached: set once that half is sent.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.asked: list[str] = []
        self.stalled: str | None = None
        self.reached, self.resumed = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def push(self, path: str, files: Files, branch: str = "main", *, gated: bool = False) -> str:
        """Commit files to a repository, which need not exist; returns the commit."""
        repository = self.repositories.setdefault(path, Repository())
        repository.gated = gated
        return repository.push(files, branch)

    def stop(self) -> None:
        """Be out of reach from now on, also over the connections that the client has kept."""
        close_session()
        self.resumed.set()
        self.shutdown()
        self.server_close()

    def downloads(self) -> list[str]:
        """The files that were downloaded so far."""
        return [asked.removeprefix("GET ") for asked in self.asked if asked.startswith("GET ") and "/resolve/" in asked]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length).decode()
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        self.server.asked.append(f"{self.command} {'/'.join(parts)}")
        if parts[0] == "api" and len(parts) < 4:
            self.refuse(404, "EntryNotFound")
        elif parts[0] == "api":
            kind, owner, name, *rest = parts[1:]
            path = f"{owner}/{name}" if kind == "models" else f"{kind}/{owner}/{name}"
            self.answer(path, rest or ["revision", "main"])
        else:
            size = 3 if parts[0] == "datasets" else 2
            self.answer("/".join(parts[:size]), parts[size:])

    do_HEAD = do_POST = do_GET

    def answer(self, path: str, rest: list[str]) -> None:
        repository = self.server.repositories.get(path)
        question, revision, *below = [*rest, "main"]
        allowed = repository is not None and (
            not repository.gated or self.headers.get("Authorization") == f"Bearer {TOKEN}"
        )
        if repository is None:
            return self.refuse(401, "RepoNotFound")
        if allowed and question == "auth-check":
            return self.send(b"{}")
        if not allowed and question in ("resolve", "auth-check"):
            return self.refuse(403 if self.headers.get("Authorization") else 401, "GatedRepo")
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            return self.refuse(404, "RevisionNotFound")
        files = repository.commits[commit]
        match question:
            case "revision":
                siblings = [{"rfilename": name} for name in files]
                self.send(json.dumps({"id": path, "sha": commit, "siblings": siblings, "tags": []}).encode())
            case "tree":
                listed = _tree(files, "".join(f"{part}/" for part in below[:-1]))
                if "recursive=true" not in self.path.lower():
                    listed = [entry for entry in listed if str(entry["path"]).count("/") == len(below) - 1]
                self.send(json.dumps(listed).encode())
            case "paths-info":
                names = parse_qs(self.body).get("paths", [])
                self.send(json.dumps([_entry(name, files) for name in names if name in files]).encode())
            case "resolve":
                name = "/".join(below[:-1])
                if name not in files:
                    return self.refuse(404, "EntryNotFound", commit)
                self.send(files[name], {"X-Repo-Commit": commit, "ETag": f'"{_entry(name, files)["oid"]}"'}, name)
            case _:
                self.refuse(404, "EntryNotFound")

    def refuse(self, status: int, code: str, commit: str = "") -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, content: bytes, headers: Mapping[str, str] = {}, name: str = "") -> None:  # noqa: B006 - not changed
        start = 0
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        if name and name == self.server.stalled:
            half = len(content) // 2
            self.wfile.write(content[start:half])
            self.wfile.flush()
            self.server.reached.set()
            self.server.resumed.wait()
            start = half
        self.wfile.write(content[start:])

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _entry(name: str, files: Files) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(files[name]), "oid": hashlib.sha1(files[name]).hexdigest()}


def _tree(files: Files, prefix: str) -> list[dict[str, object]]:
    """Files and folders below a prefix."""
    names = [name for name in files if name.startswith(prefix)]
    folders = {str(folder) for name in names for folder in Path(name).parents} - {"."}
    below = sorted(folder for folder in folders if folder.startswith(prefix))
    directories = [{"type": "directory", "path": folder, "size": 0, "oid": "0" * 40} for folder in below]
    return [*directories, *(_entry(name, files) for name in names)]


@contextmanager
def running() -> Iterator[Hub]:
    """A hub without repositories, until the end of the block."""
    hub = Hub()
    threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.stop()


def environment(hub: Hub, folder: Path) -> dict[str, str]:
    """Variables under which a new process asks this hub and no other, and keeps what it has from it in ``folder``."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "huggingface"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "FPBENCH_CACHE": str(folder / "fpbench"),
        "HF_TOKEN": "",
    }


def use(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process, whose libraries have read their variables already, do the same."""
    import datasets.config
    from huggingface_hub import HfFileSystem, constants

    HfFileSystem.clear_instance_cache()  # it remembers answers by address, and addresses come round again
    for name in ("FPBENCH_CACHE", "HF_TOKEN"):
        monkeypatch.setenv(name, environment(hub, folder)[name])
    kept = folder / "huggingface"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(kept / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(kept / "token"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", kept / "datasets")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", kept / "datasets" / "downloads")
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
