"""A Hugging Face hub of our own on loopback: model pages, files, ranges, and what may go wrong."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest


@dataclass
class FakeHub:
    """Repositories, and a record of what was asked."""

    url: str
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Of each `owner/model` its files."""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and range of each request, in order."""
    breaks_after: int | None = None
    """The body of a file ends after so many bytes, once for every request."""
    adds: int = 0
    """So many bytes more than were announced are in every file."""
    is_dead: bool = False
    """Every connection is closed at once."""

    def add_folder(self, repo: str, folder: Path) -> None:
        """Publish a folder's files."""
        self.repositories[repo] = {
            file.relative_to(folder).as_posix(): file.read_bytes()
            for file in folder.rglob("*")
            if file.is_file()
        }

    def commit(self, repo: str) -> str:
        """The newest commit, which follows from the files."""
        digest = hashlib.sha1(repo.encode())
        for name, content in sorted(self.repositories[repo].items()):
            digest.update(name.encode() + content)
        return digest.hexdigest()

    def sent(self, method: str = "GET") -> list[tuple[str, str | None]]:
        """Files that were asked for, by name, each with its range."""
        return [
            (path.partition("/resolve/")[2].partition("/")[2], span)
            for verb, path, span in self.requests
            if verb == method and "/resolve/" in path
        ]


def use_hub(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let huggingface_hub, in this process, ask the hub and keep what it gets in `cache`."""
    constants = "huggingface_hub.constants."
    monkeypatch.setattr(constants + "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants + "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants + "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants + "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr("agent.hub._LARGE_BYTES", 1000)


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that answers until the end of the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    hub = FakeHub(f"http://127.0.0.1:{server.server_address[1]}")
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def etag(content: bytes, *, is_large: bool) -> str:
    """As the hub forms it: SHA-256 of large files, git's hash of others."""
    if is_large:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def _hub(self) -> FakeHub:
        return self.server.hub  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, path = self._hub, unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, self.headers.get("Range")))
        if hub.is_dead:
            self.close_connection = True
            self.connection.close()
            return
        if path.startswith("/api/models/"):
            self._info(path.removeprefix("/api/models/"))
            return
        repo, _, rest = path[1:].partition("/resolve/")
        revision, _, name = rest.partition("/")
        content = hub.repositories.get(repo, {}).get(name)
        if content is None:
            self._refuse("EntryNotFound" if repo in hub.repositories else "RepoNotFound")
        elif revision not in ("main", hub.commit(repo)):
            self._refuse("RevisionNotFound")
        else:
            self._file(repo, name, content)

    def _info(self, path: str) -> None:
        repo, _, revision = path.partition("/revision/")
        hub = self._hub
        if repo not in hub.repositories:
            self._refuse("RepoNotFound")
            return
        if revision not in ("", "main", hub.commit(repo)):
            self._refuse("RevisionNotFound")
            return
        siblings = []
        for name, content in hub.repositories[repo].items():
            tag = etag(content, is_large=_is_large(name))
            lfs = {"sha256": tag, "size": len(content), "pointerSize": 134}
            siblings.append({"rfilename": name, "size": len(content), "blobId": tag,
                             **({"lfs": lfs} if _is_large(name) else {})})  # fmt: skip
        page = {"id": repo, "modelId": repo, "sha": hub.commit(repo), "private": False,
                "downloads": 0, "likes": 0, "tags": [], "siblings": siblings}  # fmt: skip
        self._send(200, json.dumps(page).encode(), {"Content-Type": "application/json"})

    def _file(self, repo: str, name: str, content: bytes) -> None:
        hub = self._hub
        headers = {
            "X-Repo-Commit": hub.commit(repo),
            "ETag": f'"{etag(content, is_large=_is_large(name))}"',
            "Accept-Ranges": "bytes",
        }
        content += b"\0" * hub.adds
        span = self.headers.get("Range")
        if span is None:
            self._send(200, content, headers)
            return
        first = int(span.removeprefix("bytes=").partition("-")[0])
        headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        self._send(206, content[first:], headers)

    def _refuse(self, code: str) -> None:
        self._send(404, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = self._hub.breaks_after
        if limit is not None and len(body) > limit:
            self.wfile.write(body[:limit])
            self.wfile.flush()
            self._hub.is_dead = True
            self.close_connection = True
            return
        self.wfile.write(body)


def _is_large(name: str) -> bool:
    return name.endswith(".safetensors")
