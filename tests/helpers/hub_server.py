"""A stand-in for the Hub on loopback: the part of its HTTP protocol that creates, fills and reads model repositories.

`huggingface_hub` itself talks to it (HF_ENDPOINT, and HF_HUB_DISABLE_XET=1: files in the classic git LFS way, for which
`localhost` plays the storage host that the Hub on 127.0.0.1 hands out signed addresses of).
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class File:
    data: bytes
    lfs: bool = False

    @property
    def oid(self) -> str:
        """As git names its content, or git LFS."""
        if self.lfs:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha1(f"blob {len(self.data)}\0".encode() + self.data).hexdigest()


@dataclass
class Commit:
    oid: str
    title: str
    description: str
    files: dict[str, File]


@dataclass
class Repository:
    name: str
    private: bool
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)

    def add(self, branch: str, title: str, description: str, changes: dict[str, File]) -> Commit:
        oid = hashlib.sha1(f"{self.name} {len(self.commits)}".encode()).hexdigest()
        before = self.find(branch).files if self.commits else {}
        self.commits.append(Commit(oid, title, description, before | changes))
        self.branches[branch] = oid
        return self.commits[-1]

    def find(self, revision: str) -> Commit | None:
        """The commit of a branch or hash."""
        oid = self.branches.get(revision, revision)
        return next((commit for commit in self.commits if commit.oid == oid), None)


@dataclass
class Request:
    method: str
    path: str  # as it was sent, quoted: a branch may hold a slash
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes = b""
    status: int | None = None  # None: the connection was dropped

    @property
    def token(self) -> str | None:
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None


@dataclass
class Fault:
    part: str
    status: int | None = None  # None: the connection is dropped
    message: str = "refused by the test"
    times: int = -1
    after: bool = False


class Answer(Exception):
    """What a request gets, at once."""

    def __init__(self, status: int, body: object = b"", **headers: str):
        self.status, self.headers = status, {name.replace("_", "-"): value for name, value in headers.items()}
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


def refusal(status: int, message: str, code: str = "") -> Answer:
    """An error as the Hub words it: in the headers and in the body."""
    return Answer(status, {"error": message}, X_Error_Message=" ".join(message.split()), X_Error_Code=code)


ROUTES: list[tuple[str, re.Pattern, Callable]] = []
REPO, REVISION = r"(?P<name>[^/]+/[^/]+?)", r"(?P<revision>[^/]+)"


def route(methods: str, pattern: str):
    """Requests of these methods whose path fits are answered by the function below."""

    def add(function):
        ROUTES.extend((method, re.compile(pattern), function) for method in methods.split())
        return function

    return add


class Hub:
    """A running server. `users` maps tokens to (user name, may write)."""

    def __init__(self, users: dict[str, tuple[str, bool]]):
        self.users = users
        self.repositories: dict[str, Repository] = {}  # by name in lower case
        self.storage: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.hub = self
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.storage_host = f"http://localhost:{self.server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def fail(self, part: str, status: int, **options) -> None:
        """Answer requests whose path contains `part` with an error, always or so many times."""
        self.faults.append(Fault(part, status, **options))

    def drop(self, part: str, **options) -> None:
        """Lose the connection of such requests: amid the body, or (`after`) when they have been carried out."""
        self.faults.append(Fault(part, **options))

    def take_fault(self, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.part in path and fault.times != 0:
                    fault.times -= 1
                    return fault

    def repository(self, name: str) -> Repository:
        return self.repositories[name.lower()]

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        return {path: file.data for path, file in self.repository(name).find(revision).files.items()}

    def answer(self, request: Request) -> Answer:
        try:
            for method, pattern, function in ROUTES:
                if method == request.method and (match := pattern.fullmatch(request.path)):
                    with self.lock:
                        return function(self, request, **{k: v and unquote(v) for k, v in match.groupdict().items()})
        except Answer as answer:
            return answer
        return refusal(404, f"no such page: {request.path}", "EntryNotFound")

    def user(self, request: Request) -> tuple[str, bool]:
        """Who asks, and whether they may write."""
        if request.token not in self.users:
            raise refusal(401, "Invalid credentials in Authorization header")
        return self.users[request.token]

    def open(self, request: Request, name: str, write: bool = False) -> Repository:
        """The repository, if the one who asks may see it (and write it)."""
        user, may_write = self.user(request) if request.token else ("", False)
        repository, own = self.repositories.get(name.lower()), name.lower().startswith(f"{user}/")
        if repository is None or (repository.private and not own):
            # The Hub does not tell a stranger whether there is one. (Over https its 401 needs no code for that.)
            raise refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and not (own and may_write):
            raise refusal(403, "You are not authorized to write to this repository")
        return repository

    def commit(self, request: Request, name: str, revision: str, write: bool = False) -> Commit:
        commit = self.open(request, name, write).find(revision)
        if commit is None:
            raise refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    @route("POST", "/api/repos/create")
    def create(self, request: Request) -> Answer:
        (user, may_write), asked = self.user(request), json.loads(request.body)
        if (asked.get("organization") or user).lower() != user or not may_write:
            raise refusal(403, "You don't have the rights to create a model under this namespace")
        name = f"{user}/{asked['name']}"
        if (existing := self.repositories.get(name.lower())) is not None:
            return Answer(409, {"error": "You already created it", "url": f"{self.endpoint}/{existing.name}"})
        private = asked.get("private", False) or asked.get("visibility") == "private"
        self.repositories[name.lower()] = repository = Repository(name, private)
        repository.add("main", "initial commit", "", {".gitattributes": File(b"*.safetensors filter=lfs\n")})
        return Answer(200, {"url": f"{self.endpoint}/{name}", "name": name, "id": name})

    @route("GET", "/api/whoami-v2")
    def whoami(self, request: Request) -> Answer:
        return Answer(200, {"type": "user", "name": self.user(request)[0], "orgs": []})

    @route("POST", "/api/validate-yaml")
    def validate_card(self, request: Request) -> Answer:
        return Answer(200, {"errors": [], "warnings": []})

    @route("GET", f"/api/models/{REPO}/auth-check(?P<write>/write)?")
    def auth_check(self, request: Request, name: str, write: str | None) -> Answer:
        self.open(request, name, write=write is not None)
        return Answer(200, {})

    @route("GET", f"/api/models/{REPO}(/revision/{REVISION})?")
    def info(self, request: Request, name: str, revision: str | None) -> Answer:
        repository, commit = self.open(request, name), self.commit(request, name, revision or "main")
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        return Answer(200, {"id": repository.name, "sha": commit.oid, "siblings": siblings})

    @route("POST", f"/api/models/{REPO}/branch/{REVISION}")
    def create_branch(self, request: Request, name: str, revision: str) -> Answer:
        branches = self.open(request, name, write=True).branches
        if revision in branches:
            raise refusal(409, f"Reference already exists: {revision}")
        branches[revision] = branches["main"]
        return Answer(201, {})

    @route("POST", f"/api/models/{REPO}/preupload/{REVISION}")
    def preupload(self, request: Request, name: str, revision: str) -> Answer:
        """Which files go to the storage; the id of a file that is there already tells the client to leave it out."""
        present, files = self.commit(request, name, revision, write=True).files, []
        for asked in json.loads(request.body)["files"]:
            path, old = asked["path"], present.get(asked["path"])
            mode = "lfs" if path.endswith(".safetensors") else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False} | ({"oid": old.oid} if old else {}))
        return Answer(200, {"files": files})

    @route("POST", rf"/{REPO}\.git/info/lfs/objects/batch")
    def lfs_batch(self, request: Request, name: str) -> Answer:
        self.open(request, name, write=True)
        objects = []
        for asked in json.loads(request.body)["objects"]:
            upload = {"href": f"{self.storage_host}/storage/{asked['oid']}?X-Amz-Signature=put"}
            needed = {} if asked["oid"] in self.storage else {"actions": {"upload": upload}}
            objects.append({"oid": asked["oid"], "size": asked["size"]} | needed)
        return Answer(200, {"transfer": "basic", "objects": objects})

    @route("PUT GET HEAD", "/storage/(?P<oid>[0-9a-f]{64})")
    def store(self, request: Request, oid: str) -> Answer:
        """The storage host: a signed address opens it, and a token must not be sent there."""
        writes = request.method == "PUT"
        if request.token is not None:
            raise Answer(400, b"Only one auth mechanism allowed")
        if request.query.get("X-Amz-Signature") != ["put" if writes else "get"]:
            raise Answer(403, b"SignatureDoesNotMatch")
        if writes:
            self.storage[oid] = request.body
        return Answer(200, b"" if writes else self.storage[oid], ETag=f'"{oid}"')

    @route("POST", f"/api/models/{REPO}/commit/{REVISION}")
    def push(self, request: Request, name: str, revision: str) -> Answer:
        """A commit: a header and one operation a line."""
        self.commit(request, name, revision, write=True)
        (_, header), *operations = (json.loads(line).values() for line in request.body.splitlines())
        changes = {}
        for kind, value in operations:
            stored = kind == "lfsFile"
            data = self.storage[value["oid"]] if stored else base64.b64decode(value["content"])
            changes[value["path"]] = File(data, lfs=stored)
        repository = self.repository(name)
        commit = repository.add(revision, header["summary"], header["description"], changes)
        address = f"{self.endpoint}/{repository.name}/commit/{commit.oid}"
        return Answer(200, {"success": True, "commitOid": commit.oid, "commitUrl": address})

    @route("HEAD GET", f"/{REPO}/resolve/{REVISION}/(?P<path>.+)")
    def resolve(self, request: Request, name: str, revision: str, path: str) -> Answer:
        """A file, or where a large one lies in the storage."""
        commit = self.commit(request, name, revision)
        file = commit.files.get(path)
        if file is None:
            raise refusal(404, "Entry not found", "EntryNotFound")
        known = {"X_Repo_Commit": commit.oid, "ETag": f'"{file.oid}"'}
        if not file.lfs:
            return Answer(200, file.data, **known)
        where = f"{self.storage_host}/storage/{file.oid}?X-Amz-Signature=get"
        return Answer(302, b"", X_Linked_Etag=file.oid, X_Linked_Size=str(len(file.data)), Location=where, **known)


class Handler(BaseHTTPRequestHandler):
    """Reads requests, applies the faults, records and answers."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_request(self):
        hub, parts = self.server.hub, urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, parts.path, parse_qs(parts.query), headers)
        hub.requests.append(request)
        fault, length = hub.take_fault(parts.path), int(headers.get("content-length", 0))
        if fault is not None and fault.status is None and not fault.after:
            self.rfile.read(length // 2)
            return self.drop()
        request.body = self.rfile.read(length)
        if fault is not None and fault.status is not None:
            answer = refusal(fault.status, fault.message)
        else:
            answer = hub.answer(request)
            if fault is not None:
                return self.drop()
        request.status = answer.status
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def drop(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_):
        pass
