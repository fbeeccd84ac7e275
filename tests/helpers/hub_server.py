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

GIT_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
LARGE = 10_000_000  # bytes from which on any file goes to the storage


def git_hash(kind: str, data: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


@dataclass
class File:
    data: bytes
    lfs: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()

    @property
    def blob_id(self) -> str:
        return git_hash("blob", self.pointer if self.lfs else self.data)

    def entry(self, path: str) -> dict:
        """As the `tree` and `paths-info` endpoints describe it."""
        lfs = {"lfs": {"oid": self.sha256, "size": len(self.data), "pointerSize": len(self.pointer)}}
        return {"type": "file", "path": path, "oid": self.blob_id, "size": len(self.data)} | (lfs if self.lfs else {})


@dataclass
class Commit:
    title: str
    description: str
    parent: str | None
    files: dict[str, File]

    @property
    def oid(self) -> str:
        tree = "".join(f"{path} {file.blob_id}\n" for path, file in sorted(self.files.items()))
        return git_hash("commit", f"{tree}{self.parent}\n{self.title}\n{self.description}".encode())


@dataclass
class Repository:
    name: str
    private: bool
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)

    def add(self, branch: str, title: str, description: str, changes: dict[str, File]) -> Commit:
        parent = self.find(branch)
        commit = Commit(title, description, parent and parent.oid, (parent.files if parent else {}) | changes)
        self.commits.append(commit)
        self.branches[branch] = commit.oid
        return commit

    def find(self, revision: str) -> Commit | None:
        """The commit of a branch or hash."""
        oid = self.branches.get(revision.removeprefix("refs/heads/"), revision)
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

    def json(self):
        return json.loads(self.body)


@dataclass
class Fault:
    part: str
    method: str | None
    times: int | None
    status: int | None = None
    message: str = ""
    after: bool = False


class Answer(Exception):
    """What a request gets, at once."""

    def __init__(self, status: int, body: object = b"", headers: dict[str, str] | None = None):
        self.status, self.headers = status, headers or {}
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        if not isinstance(body, bytes):
            self.headers |= {"Content-Type": "application/json; charset=utf-8"}


def refusal(status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None) -> Answer:
    """An error as the Hub words it: in the headers and in the body."""
    named = {"X-Error-Message": " ".join(message.split())} | ({"X-Error-Code": code} if code else {})
    return Answer(status, {"error": message}, named | (headers or {}))


ROUTES: list[tuple[str, re.Pattern, Callable]] = []
REPO = r"(?P<name>[^/]+/[^/]+?)"
REVISION = r"(?P<revision>[^/]+)"


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
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> "Hub":
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def fail(self, part: str, status: int, message: str = "refused by the test", method=None, times=None) -> None:
        """Answer requests whose path contains `part` with an error, always or so many times."""
        self.faults.append(Fault(part, method, times, status=status, message=message))

    def drop(self, part: str, method=None, times=None, after=False) -> None:
        """Lose the connection of such requests: amid the body, or (`after`) when they have been carried out."""
        self.faults.append(Fault(part, method, times, after=after))

    def heal(self) -> None:
        self.faults.clear()

    def repository(self, name: str) -> Repository:
        return self.repositories[name.lower()]

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        return {path: file.data for path, file in self.repository(name).find(revision).files.items()}

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.part in path and fault.method in (None, method) and fault.times != 0:
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault

    def answer(self, request: Request) -> Answer:
        try:
            for method, pattern, function in ROUTES:
                if method == request.method and (match := pattern.fullmatch(request.path)):
                    with self.lock:
                        return function(self, request, **{k: v and unquote(v) for k, v in match.groupdict().items()})
        except Answer as answer:
            return answer
        return refusal(404, f"no such page: {request.path}")

    def user(self, request: Request) -> tuple[str | None, bool]:
        """Who asks, and whether they may write."""
        if request.token is None:
            return None, False
        if request.token not in self.users:
            raise refusal(401, "Invalid credentials in Authorization header")
        return self.users[request.token]

    def open(self, request: Request, name: str, write: bool = False) -> Repository:
        """The repository, if the one who asks may see it (and write it)."""
        user, may_write = self.user(request)
        repository = self.repositories.get(name.lower())
        own = user is not None and name.lower().startswith(f"{user}/".lower())
        if repository is None or (repository.private and not own):
            # The Hub does not tell a stranger whether there is one. (Over https its 401 needs no code for that.)
            raise refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and user is None:
            raise refusal(401, "Invalid username or password.")
        if write and not (own and may_write):
            raise refusal(403, "You are not authorized to write to this repository")
        return repository

    def commit(self, repository: Repository, revision: str) -> Commit:
        commit = repository.find(revision)
        if commit is None:
            raise refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    @route("POST", "/api/repos/create")
    def create(self, request: Request) -> Answer:
        user, may_write = self.user(request)
        if user is None:
            raise refusal(401, "Invalid username or password.")
        asked = request.json()
        owner = asked.get("organization") or user
        if owner.lower() != user.lower() or not may_write:
            raise refusal(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        name = f"{user}/{asked['name']}"
        if (existing := self.repositories.get(name.lower())) is not None:
            body = {"error": "You already created this model repo", "url": f"{self.endpoint}/{existing.name}"}
            return Answer(409, body)
        private = asked.get("private", False) or asked.get("visibility") == "private"
        self.repositories[name.lower()] = repository = Repository(name, private)
        repository.add("main", "initial commit", "", {".gitattributes": File(GIT_ATTRIBUTES)})
        return Answer(200, {"url": f"{self.endpoint}/{name}", "name": name, "id": name})

    @route("GET", "/api/whoami-v2")
    def whoami(self, request: Request) -> Answer:
        user, _ = self.user(request)
        if user is None:
            raise refusal(401, "Invalid username or password.")
        return Answer(200, {"type": "user", "name": user, "orgs": []})

    @route("POST", "/api/validate-yaml")
    def validate_card(self, request: Request) -> Answer:
        return Answer(200, {"errors": [], "warnings": []})

    @route("GET", f"/api/models/{REPO}/auth-check(?P<write>/write)?")
    def auth_check(self, request: Request, name: str, write: str | None) -> Answer:
        self.open(request, name, write=write is not None)
        return Answer(200, {})

    @route("GET", f"/api/models/{REPO}(/revision/{REVISION})?")
    def info(self, request: Request, name: str, revision: str | None) -> Answer:
        repository = self.open(request, name)
        commit = self.commit(repository, revision or "main")
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        named = {"id": repository.name, "modelId": repository.name, "private": repository.private, "sha": commit.oid}
        return Answer(200, named | {"tags": [], "downloads": 0, "likes": 0, "siblings": siblings})

    @route("POST", f"/api/models/{REPO}/branch/{REVISION}")
    def create_branch(self, request: Request, name: str, revision: str) -> Answer:
        repository = self.open(request, name, write=True)
        if revision in repository.branches:
            raise refusal(409, f"Reference already exists: {revision}")
        start = json.loads(request.body or b"{}").get("startingPoint", "main")
        repository.branches[revision] = self.commit(repository, start).oid
        return Answer(201, {})

    @route("POST", f"/api/models/{REPO}/preupload/{REVISION}")
    def preupload(self, request: Request, name: str, revision: str) -> Answer:
        """Which files go to the storage; the id of a file that is there already tells the client to leave it out."""
        present = self.commit(self.open(request, name, write=True), revision).files
        files = []
        for asked in request.json()["files"]:
            lfs = asked["path"].endswith(".safetensors") or asked["size"] > LARGE
            old = present.get(asked["path"])
            oid = {"oid": old.sha256 if old.lfs else old.blob_id} if old else {}
            mode = {"path": asked["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            files.append(mode | oid)
        return Answer(200, {"files": files})

    @route("POST", rf"/{REPO}\.git/info/lfs/objects/batch")
    def lfs_batch(self, request: Request, name: str) -> Answer:
        self.open(request, name, write=True)
        objects = []
        for asked in request.json()["objects"]:
            upload = {"href": f"{self.storage_host}/storage/{asked['oid']}?X-Amz-Signature=put"}
            verify = {"href": f"{self.endpoint}/{name}.git/info/lfs/objects/verify"}
            needed = {} if asked["oid"] in self.storage else {"actions": {"upload": upload, "verify": verify}}
            objects.append({"oid": asked["oid"], "size": asked["size"]} | needed)
        kind = {"Content-Type": "application/vnd.git-lfs+json"}
        return Answer(200, json.dumps({"transfer": "basic", "objects": objects}).encode(), kind)

    @route("POST", rf"/{REPO}\.git/info/lfs/objects/verify")
    def lfs_verify(self, request: Request, name: str) -> Answer:
        self.open(request, name, write=True)
        asked = request.json()
        if len(self.storage.get(asked["oid"], b"")) != asked["size"]:
            raise refusal(404, "the object is not in the storage")
        return Answer(200, {})

    @route("PUT GET HEAD", "/storage/(?P<oid>[0-9a-f]{64})")
    def store(self, request: Request, oid: str) -> Answer:
        """The storage host: a signed address opens it, and a token must not be sent there."""
        if request.token is not None:
            raise Answer(400, b"<Error><Code>InvalidArgument</Code><Message>Only one auth mechanism allowed</Message>")
        signed = "put" if request.method == "PUT" else "get"
        if request.query.get("X-Amz-Signature") != [signed]:
            raise Answer(403, b"<Error><Code>SignatureDoesNotMatch</Code></Error>")
        if request.method == "PUT":
            if hashlib.sha256(request.body).hexdigest() != oid:
                raise Answer(400, b"<Error><Code>BadDigest</Code></Error>")
            self.storage[oid] = request.body
            return Answer(200)
        return Answer(200, self.storage[oid], {"ETag": f'"{oid[:32]}"'})

    @route("POST", f"/api/models/{REPO}/commit/{REVISION}")
    def push(self, request: Request, name: str, revision: str) -> Answer:
        """A commit: a header and one operation a line."""
        repository = self.open(request, name, write=True)
        parent = self.commit(repository, revision)
        header, *operations = (json.loads(line) for line in request.body.splitlines())
        if header["value"].get("parentCommit") not in (None, parent.oid):
            raise refusal(412, "A commit has happened since. Please refresh and try again.")
        changes = {}
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                changes[value["path"]] = File(base64.b64decode(value["content"]))
            elif operation["key"] != "lfsFile":
                raise refusal(400, f"the stand-in cannot do {operation['key']}")
            elif value["oid"] not in self.storage:
                raise refusal(400, "Your push was rejected because an LFS pointer points to a file that does not exist")
            else:
                changes[value["path"]] = File(self.storage[value["oid"]], lfs=True)
        commit = repository.add(revision, header["value"]["summary"], header["value"]["description"], changes)
        address = f"{self.endpoint}/{repository.name}/commit/{commit.oid}"
        return Answer(200, {"success": True, "commitOid": commit.oid, "commitUrl": address})

    @route("GET", f"/api/models/{REPO}/tree/{REVISION}(/(?P<folder>.+))?")
    def tree(self, request: Request, name: str, revision: str, folder: str | None) -> Answer:
        commit = self.commit(self.open(request, name), revision)
        recursive = request.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        start = f"{folder}/" if folder else ""
        entries = {}
        for path, file in sorted(commit.files.items()):
            below, slash, _ = path.removeprefix(start).partition("/")
            if path.startswith(start) and (recursive or not slash):
                entries[path] = file.entry(path)
            elif path.startswith(start):
                path = start + below
                entries[path] = {"type": "directory", "path": path, "oid": git_hash("tree", path.encode()), "size": 0}
        if start and not entries:
            raise refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        return Answer(200, list(entries.values()))

    @route("HEAD GET", f"/{REPO}/resolve/{REVISION}/(?P<path>.+)")
    def resolve(self, request: Request, name: str, revision: str, path: str) -> Answer:
        """Where a file lies: a large one in the storage, another one in the Hub's cache."""
        repository = self.open(request, name)
        commit = self.commit(repository, revision)
        headers = {"X-Repo-Commit": commit.oid}
        file = commit.files.get(path)
        if file is None:
            raise refusal(404, "Entry not found", "EntryNotFound", headers)
        if file.lfs:
            linked = {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.data))}
            where = f"{self.storage_host}/storage/{file.sha256}?X-Amz-Signature=get"
            return Answer(302, b"", headers | linked | {"Location": where})
        where = f"/api/resolve-cache/models/{repository.name}/{commit.oid}/{path}"
        return Answer(307, b"", headers | {"ETag": f'"{file.blob_id}"', "Location": where})

    @route("HEAD GET", f"/api/resolve-cache/models/{REPO}/{REVISION}/(?P<path>.+)")
    def resolve_cache(self, request: Request, name: str, revision: str, path: str) -> Answer:
        commit = self.commit(self.open(request, name), revision)
        file = commit.files[path]
        return Answer(200, file.data, {"X-Repo-Commit": commit.oid, "ETag": f'"{file.blob_id}"'})


class Handler(BaseHTTPRequestHandler):
    """Reads requests, applies the faults, records and answers."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_request(self):
        hub, parts = self.server.hub, urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, parts.path, parse_qs(parts.query), headers)
        hub.requests.append(request)
        fault = hub.take_fault(self.command, parts.path)
        if fault is not None and fault.status is None and not fault.after:
            self.rfile.read(int(headers.get("content-length", 0)) // 2)
            return self.drop()
        request.body = self.read_body(headers)
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

    def read_body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def drop(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_):
        pass
