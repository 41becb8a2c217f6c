"""A Hugging Face Hub on loopback, in memory: as much of its protocol as `huggingface_hub` needs.

Large files travel under another host name than the API, as they do on the Hub, and the token must not go there.
"""

import base64
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    private: bool
    is_space: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # commit -> path -> content
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        names = "".join(f"{name} {git_oid(content)}\n" for name, content in sorted(files.items()))
        sha = hashlib.sha1(f"{self.branches.get(branch)}\n{names}".encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha


class Answer(Exception):
    """What a request ends in."""

    def __init__(self, status: int, content=None, error: str | None = None, code: str | None = None, **headers):
        self.status, self.content, self.headers = status, content, headers
        if error:
            self.content, self.headers = {"error": error}, {"X-Error-Message": error, **headers}
        if code:
            self.headers["X-Error-Code"] = code


class HubServer(ThreadingHTTPServer):
    """
    Serves until the `with` block ends.

    `tokens` maps tokens to users; a user writes under their name. `log` lists requests as (method, path, headers).
    `breaks` counts, by place (`"upload"`, `"download"`: half of a large file; `"commit"`), how often the connection
    is still to break there.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.tokens: dict[str, str] = {}
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.log: list[tuple[str, str, dict]] = []
        self.breaks: dict[str, int] = {}
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.storage_url = f"http://localhost:{self.server_port}/storage"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def broken(self, place: str) -> bool:
        with self.lock:
            self.breaks[place] = self.breaks.get(place, 0) - 1
            return self.breaks[place] >= 0

    def requests(self, method: str, pattern: str) -> list[dict]:
        """Headers of the requests whose path matches."""
        return [headers for verb, path, headers in self.log if verb == method and re.search(pattern, path)]

    def publish(self, name: str, folder: Path) -> None:
        """Has the files of a folder as a repository of someone else's."""
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
        self.large |= {hashlib.sha256(files[path]).hexdigest(): files[path] for path in files if is_large(path)}
        self.repos[name] = Repo(private=False)
        self.repos[name].commit("main", files)

    def handle_error(self, request, client_address):
        """Clients that hang up are no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_):
        pass

    def _respond(self):
        url = urlsplit(self.path)
        self.path = unquote(url.path)
        self.server.log.append((self.command, self.path, {key.lower(): x for key, x in self.headers.items()}))
        try:
            if self.path.startswith("/storage/"):
                self._storage(self.path.removeprefix("/storage/"))
            for method, pattern, action in ROUTES:
                found = re.fullmatch(pattern, self.path)
                if found and self.command in method.split():
                    getattr(self, action)(**found.groupdict())
            raise Answer(404, error="Not Found")
        except Answer as answer:
            self._send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = _respond

    def _send(self, answer: Answer) -> None:
        content = answer.content
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            answer.headers["Content-Type"] = "application/json"
        self.send_response(answer.status)
        for key, value in {"Content-Length": len(content), **answer.headers}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _body(self, share: float = 1.0) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(int(self.headers.get("Content-Length", 0)) * share))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(2)
        raise ConnectionError

    # ------------------------------------------------------------------------------------------------ who may what

    def _user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.server.tokens:
            raise Answer(401, error="Invalid credentials in Authorization header")
        return self.server.tokens.get(token)

    def _repo(self, name: str, write: bool = False) -> Repo:
        user, repo = self._user(), self.server.repos.get(name)
        mine = user == name.split("/")[0]
        if repo is None or (repo.private and not mine):
            raise Answer(404 if user else 401, error="Repository not found", code="RepoNotFound")
        if write and not mine:
            raise Answer(403 if user else 401, error="You have no write access to this repository")
        return repo

    def _files(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repo = self._repo(name)
        sha = repo.branches.get(revision, revision)
        if sha not in repo.commits:
            raise Answer(404, error=f"Invalid rev id: {revision}", code="RevisionNotFound")
        return sha, repo.commits[sha]

    def _whoami(self):
        user = self._user()
        if user is None:
            raise Answer(401, error="Invalid username or password.")
        token = {"displayName": "test", "role": "write"}
        raise Answer(200, {"type": "user", "name": user, "orgs": [], "auth": {"accessToken": token}})

    # ------------------------------------------------------------------------------------------------ repositories

    def _create(self):
        body, user = json.loads(self._body()), self._user()
        if user is None:
            raise Answer(401, error="Invalid username or password.")
        owner = body["organization"] or user
        name = f"{owner}/{body['name']}"
        if owner != user:
            raise Answer(403, error=f"You don't have the rights to create a model under the namespace {owner}")
        if name in self.server.repos:
            raise Answer(409, {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"})
        repo = self.server.repos[name] = Repo(
            private=body.get("visibility") == "private", is_space=body.get("type") == "space"
        )
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        raise Answer(200, {"url": f"{self.server.url}/{name}"})

    def _branch(self, name: str, revision: str):
        self._body()
        repo = self._repo(name, write=True)
        repo.branches[revision] = repo.branches["main"]
        raise Answer(200, {})

    def _info(self, name: str, revision: str | None = None):
        sha, files = self._files(name, revision or "main")
        siblings = [{"rfilename": path} for path in sorted(files)]
        content = {"id": name, "sha": sha, "private": self.server.repos[name].private, "siblings": siblings}
        raise Answer(200, {**content, "tags": [], "downloads": 0, "likes": 0})

    def _tree(self, name: str, revision: str):
        raise Answer(200, [self._entry(path, content) for path, content in self._files(name, revision)[1].items()])

    def _entry(self, path: str, content: bytes) -> dict:
        entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
        if is_large(path):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return entry

    def _resolve(self, name: str, revision: str, path: str):
        sha, files = self._files(name, revision)
        if path not in files:
            raise Answer(404, error="Entry not found", code="EntryNotFound", **{"X-Repo-Commit": sha})
        content = files[path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{git_oid(content)}"'}
        if is_large(path):
            oid = hashlib.sha256(content).hexdigest()
            headers |= {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": len(content)}
            raise Answer(302, b"", Location=f"{self.server.storage_url}/{oid}", **headers)
        if span := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last = map(int, span.groups())
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            raise Answer(206, content[first : last + 1], **headers)
        raise Answer(200, content, **headers)

    # ------------------------------------------------------------------------------------------------ uploads

    def _validate(self):
        text = json.loads(self._body())["content"]
        try:
            yaml.safe_load(text.split("---")[1])
        except yaml.YAMLError as error:
            raise Answer(400, {"errors": [{"message": str(error)}], "warnings": []}) from None
        raise Answer(200, {"errors": [], "warnings": []})

    def _preupload(self, name: str, revision: str):
        body = json.loads(self._body())
        self._repo(name, write=True)
        files, answers = self._files(name, revision)[1], []
        for file in body["files"]:
            path = file["path"]
            entry = self._entry(path, files[path]) if path in files else {}
            oid = entry.get("lfs", entry).get("oid")
            mode = "lfs" if is_large(path) else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        raise Answer(200, {"files": answers})

    def _batch(self, name: str):
        body = json.loads(self._body())
        self._repo(name, write=True)
        objects = []
        for item in body["objects"]:
            if item["oid"] not in self.server.large:
                item["actions"] = {"upload": {"href": f"{self.server.storage_url}/{item['oid']}"}}
            objects.append(item)
        raise Answer(200, {"transfer": "basic", "objects": objects})

    def _storage(self, oid: str):
        assert "Authorization" not in self.headers, "the token left the Hub"
        if self.command == "PUT":
            if self.server.broken("upload"):
                self._body(share=0.5)
                self._hang_up()
            content = self._body()
            if hashlib.sha256(content).hexdigest() != oid:
                raise Answer(400, error="The content is not what was announced")
            self.server.large[oid] = content
            raise Answer(200, b"", ETag=f'"{oid}"')
        content = self.server.large[oid]
        start = int((re.findall(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0])[0])
        if self.server.broken("download"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self._hang_up()
        place = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        raise Answer(206 if start else 200, content[start:], ETag=f'"{oid}"', **place)

    def _commit(self, name: str, revision: str):
        lines = [json.loads(line) for line in self._body().splitlines()]
        repo = self._repo(name, write=True)
        if self.server.broken("commit"):
            self._hang_up()
        files = dict(self._files(name, revision)[1])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.server.large:
                    raise Answer(400, error="A large file has not arrived")
                files[value["path"]] = self.server.large[value["oid"]]
        sha = repo.commit(revision, files)
        raise Answer(200, {"commitOid": sha, "commitUrl": f"{self.server.url}/{name}/commit/{sha}"})


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".png"))


NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
KIND = "/api/(?:models|spaces)"
ROUTES = [
    ("GET", "/api/whoami-v2", "_whoami"),
    ("POST", "/api/repos/create", "_create"),
    ("POST", "/api/validate-yaml", "_validate"),
    ("GET", f"{KIND}/{NAME}", "_info"),
    ("GET", f"{KIND}/{NAME}/revision/(?P<revision>.+)", "_info"),
    ("GET", f"{KIND}/{NAME}/tree/(?P<revision>[^/]+)/?", "_tree"),
    ("POST", f"{KIND}/{NAME}/branch/(?P<revision>.+)", "_branch"),
    ("POST", f"{KIND}/{NAME}/preupload/(?P<revision>.+)", "_preupload"),
    ("POST", f"{KIND}/{NAME}/commit/(?P<revision>.+)", "_commit"),
    ("POST", rf"(?:/spaces)?/{NAME}\.git/info/lfs/objects/batch", "_batch"),
    ("GET HEAD", f"(?:/spaces)?/{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "_resolve"),
]


def client(server: HubServer, home: Path, token: str | None = None, offline: bool = False) -> dict[str, str]:
    """The environment of a process with the Hub's client as it is and its endpoint on loopback."""
    env = {key: x for key, x in os.environ.items() if not key.startswith("HF_")}
    env |= {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "*"}
    return env | {"HF_HUB_OFFLINE": str(int(offline))} | ({"HF_TOKEN": token} if token else {})
