"""A Hugging Face Hub on loopback: the few answers that pushing and fetching a model take, in memory.

Written after what ``huggingface_hub`` asks for: repositories with their privacy, commits as lines of JSON, files above a size (or
whose name says so) by Git LFS. ``hub.refuse`` makes any request fail; ``hub.asked`` lists what was asked.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

__all__ = ["TOKEN", "FakeHub", "fake_hub"]

TOKEN = "hf_" + "a" * 34


@dataclass
class Repository:
    """One repository: branch to commit, commit to files."""

    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)


@dataclass
class FakeHub:
    """State of the server, for tests to look at."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Beginning of ``METHOD /path`` to status and message."""

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        """Files of a branch."""
        repository = self.repositories[name]
        return repository.commits[repository.branches[branch]]

    def add(self, name: str, files: dict[str, bytes], *, private: bool = True) -> None:
        """A repository that is there already."""
        self.repositories[name] = Repository(private, {"main": "0" * 40}, {"0" * 40: dict(files)})


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, status: int, body: object = None, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _fail(self, status: int, message: str, code: str = "") -> None:
        named = {"X-Error-Code": code} if code else {}
        self._answer(status, {"error": message}, {"X-Error-Message": message, **named})

    def _any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = f"{self.command} {path}"
        self.hub.asked.append(asked)
        for start, (status, message) in self.hub.refuse.items():
            if asked.startswith(start):
                self._fail(status, message)
                return
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if "Authorization" in self.headers and not known:
            self._fail(401, "Invalid credentials in Authorization header")
            return
        if self.command == "PUT" and path.startswith("/large/"):
            self.hub.large[path.removeprefix("/large/")] = body
            self._answer(200)
        elif asked == "POST /api/repos/create":
            self._create(json.loads(body), known)
        elif asked == "POST /api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._large(json.loads(body))
        elif path.startswith("/api/models/"):
            self._api(path.removeprefix("/api/models/").split("/"), body, known)
        elif "/resolve/" in path:
            self._resolve(path, known)
        else:
            self._fail(404, f"no answer to {asked}")

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _any  # noqa: N815 - names of the standard library

    def _seen(self, name: str, known: bool) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not known):
            self._fail(404 if known else 401, "Repository not found", "RepoNotFound")
            return None
        return repository

    def _create(self, given: dict[str, Any], known: bool) -> None:
        name = f"{given.get('organization') or 'ada'}/{given['name']}"
        if not known:
            self._fail(401, "Invalid username or password.")
        elif name in self.hub.repositories:
            self._fail(409, "You already created this model repo")
        elif not name.startswith("ada/"):
            self._fail(403, f"You don't have the rights to create a model under the namespace {name.split('/')[0]}")
        else:
            self.hub.repositories[name] = Repository(
                bool(given.get("private")) or given.get("visibility") == "private",
                {"main": "0" * 40},
                {"0" * 40: {".gitattributes": b"*.safetensors filter=lfs"}},
            )
            self._answer(200, {"url": f"{self.hub.address}/{name}", "name": name})

    def _large(self, given: dict[str, Any]) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.address}/large/{one['oid']}", "header": {}}}}
            for one in given["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _api(self, parts: list[str], body: bytes, known: bool) -> None:
        name, rest = "/".join(parts[:2]), parts[2:]
        repository = self._seen(name, known)
        if repository is None:
            return
        if self.command == "GET" and (not rest or rest[0] == "revision"):
            wanted = "/".join(rest[1:]) or "main"
            commit = repository.branches.get(wanted, wanted)
            if commit not in repository.commits:
                self._fail(404, "Invalid rev id", "RevisionNotFound")
                return
            files = [{"rfilename": file} for file in repository.commits[commit]]
            self._answer(200, {"id": name, "sha": commit, "private": repository.private, "siblings": files, "tags": []})
        elif self.command == "GET" and rest[0] == "tree":
            commit = repository.branches.get(rest[1], rest[1])
            self._answer(
                200,
                [
                    {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for file, data in repository.commits[commit].items()
                ],
            )
        elif self.command == "POST" and rest[0] == "branch":
            repository.branches.setdefault("/".join(rest[1:]), repository.branches["main"])
            self._answer(200, {})
        elif self.command == "POST" and rest[0] == "preupload":
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        elif self.command == "POST" and rest[0] == "commit":
            self._commit(name, repository, "/".join(rest[1:]), body)
        else:
            self._fail(404, f"no answer to {self.command} {rest}")

    def _commit(self, name: str, repository: Repository, branch: str, body: bytes) -> None:
        files = dict(repository.commits[repository.branches[branch]])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                repository.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        commit = hashlib.sha1(body + repository.branches[branch].encode()).hexdigest()
        repository.commits[commit], repository.branches[branch] = files, commit
        self._answer(200, {"commitUrl": f"{self.hub.address}/{name}/commit/{commit}", "commitOid": commit})

    def _resolve(self, path: str, known: bool) -> None:
        owner, name, _, commit, file = path.strip("/").split("/", 4)
        repository = self._seen(f"{owner}/{name}", known)
        if repository is None:
            return
        commit = repository.branches.get(commit, commit)
        data = repository.commits.get(commit, {}).get(file)
        if data is None:
            self._fail(404, "Entry not found", "EntryNotFound")
            return
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit}
        self._answer(200, data, headers)


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A Hub while the context lasts."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
