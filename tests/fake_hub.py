"""A stand-in for the Hugging Face hub on the loopback address, with the faults that a test asks for."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_" + "Abcdefghij0123456789Klmnopqrstuvwx"
OWNER = "orion-lab"
MODEL_ID = re.compile(r"(?:[\w-]+/)?[\w.-]+")
LICENSES = {"apache-2.0", "mit", "llama3.2", "gemma", "other"}
LARGE = (".safetensors", ".png")
NOT_FOUND = (404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
Answer = tuple[int, Any, dict[str, str]]


@dataclass
class Fault:
    """What goes wrong at a step, and how often.

    Attributes:
        step: one of the names in `FakeHub.steps`.
        what: a status code, "close" (before anything is done), "lost" (done, but the answer is lost), "half" (the
            connection breaks while the request is read), "page" (503 with HTML), or seconds of silence as a float.
        times: how often; -1 is for ever.
        headers: of the answer.
    """

    step: str
    what: Any
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


class FakeHub:
    """Answers as the hub does to an upload.

    Attributes:
        files: repository -> path -> bytes, as the last commit left them.
        commits: one entry a commit: repository, branch, summary, paths.
        seen: (step, body) of each request that was read.
        asked: steps in their order, also of requests that a fault met.
        faults: what is to go wrong.
    """

    def __init__(self, *faults: Fault) -> None:
        self.accounts = {TOKEN: OWNER}
        self.files: dict[str, dict[str, bytes]] = {}
        self.created: dict[str, dict[str, Any]] = {}
        self.store: dict[str, bytes] = {}
        self.commits: list[dict[str, Any]] = []
        self.seen: list[tuple[str, bytes]] = []
        self.asked: list[str] = []
        self.faults = list(faults)
        self.released = threading.Event()
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()

    def fault(self, step: str) -> Fault | None:
        with self._lock:
            self.asked.append(step)
            found = next((fault for fault in self.faults if fault.step == step and fault.times != 0), None)
            if found is not None:
                found.times -= 1
            return found

    @property
    def steps(self) -> list[tuple[str, str, re.Pattern[str], Callable[..., Answer]]]:
        """Name, method, path and what is done."""
        model = r"/api/models/(?P<repo>[^/]+/[^/]+)"
        return [
            ("whoami", "GET", re.compile(r"/api/whoami-v2"), self.whoami),
            ("create", "POST", re.compile(r"/api/repos/create"), self.create),
            ("validate", "POST", re.compile(r"/api/validate-yaml"), self.validate),
            ("preupload", "POST", re.compile(model + r"/preupload/(?P<branch>\w+)"), self.preupload),
            ("batch", "POST", re.compile(r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch"), self.batch),
            ("put", "PUT", re.compile(r"/store/(?P<oid>\w+)"), self.put),
            ("verify", "POST", re.compile(r"/verify"), self.verify),
            ("commit", "POST", re.compile(model + r"/commit/(?P<branch>\w+)"), self.commit),
            ("branch", "POST", re.compile(model + r"/branch/(?P<branch>\w+)"), self.branch),
            ("info", "GET", re.compile(model + r"(?:/revision/\w+)?"), self.info),
        ]

    def whoami(self, account: str, body: bytes) -> Answer:
        return 200, {"type": "user", "name": account, "fullname": account, "orgs": []}, {}

    def create(self, account: str, body: bytes) -> Answer:
        asked = json.loads(body)
        owner = asked.get("organization") or account
        if owner != account:
            return 403, {"error": "no right"}, {"X-Error-Message": f"You don't have the rights in {owner}"}
        repo = f"{owner}/{asked['name']}"
        known = repo in self.files
        self.files.setdefault(repo, {})
        self.created.setdefault(repo, asked)
        return (409 if known else 200), {"url": f"{self.url}/{repo}", "name": repo}, {}

    def validate(self, account: str, body: bytes) -> Answer:
        errors = metadata_errors(json.loads(body)["content"])
        return (400 if errors else 200), {"errors": [{"message": text} for text in errors], "warnings": []}, {}

    def preupload(self, account: str, body: bytes, repo: str, branch: str) -> Answer:
        if repo not in self.files:
            return NOT_FOUND
        rows = []
        for asked in json.loads(body)["files"]:
            large = asked["path"].endswith(LARGE)
            there = self.files[repo].get(asked["path"])
            row = {"path": asked["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            rows.append(row | ({} if there is None else {"oid": object_id(there, large)}))
        return 200, {"files": rows}, {}

    def batch(self, account: str, body: bytes, repo: str) -> Answer:
        asked = json.loads(body)
        assert asked["hash_algo"] == "sha256" and "basic" in asked["transfers"]
        return 200, {"transfer": "basic", "objects": [self._instructions(row) for row in asked["objects"]]}, {}

    def _instructions(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["oid"] in self.store:
            return row
        upload, verify = {"href": f"{self.url}/store/{row['oid']}"}, {"href": f"{self.url}/verify"}
        return row | {"actions": {"upload": upload, "verify": verify}}

    def put(self, account: str, body: bytes, oid: str) -> Answer:
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {"error": "these are not the bytes that were announced"}, {}
        self.store[oid] = body
        return 200, {}, {}

    def verify(self, account: str, body: bytes) -> Answer:
        asked = json.loads(body)
        right = asked["size"] == len(self.store.get(asked["oid"], b""))
        return (200 if right else 404), {}, {}

    def commit(self, account: str, body: bytes, repo: str, branch: str) -> Answer:
        if repo not in self.files:
            return NOT_FOUND
        header, *rows = [json.loads(line) for line in body.splitlines()]
        new = {}
        for row in rows:
            value = row["value"]
            if row["key"] == "lfsFile" and value["oid"] not in self.store:
                return 400, {"error": f"{value['path']} was never uploaded"}, {}
            new[value["path"]] = (
                self.store[value["oid"]] if row["key"] == "lfsFile" else base64.b64decode(value["content"])
            )
        self.files[repo].update(new)
        self.commits.append({"repo": repo, "branch": branch, "summary": header["value"]["summary"], "paths": set(new)})
        oid = f"{len(self.commits):040d}"
        return 200, {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{repo}/commit/{oid}"}, {}

    def branch(self, account: str, body: bytes, repo: str, branch: str) -> Answer:
        return 200, {}, {}

    def info(self, account: str, body: bytes, repo: str) -> Answer:
        if repo not in self.files:
            return NOT_FOUND
        about = {"id": repo, "modelId": repo, "sha": f"{len(self.commits):040d}", "tags": [], "siblings": []}
        return 200, about | {"private": False, "downloads": 0, "likes": 0}, {}

    def _handler(fake: "FakeHub") -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                """Say nothing."""

            def do_GET(self) -> None:
                self.serve()

            def do_POST(self) -> None:
                self.serve()

            def do_PUT(self) -> None:
                self.serve()

            def serve(self) -> None:
                path = self.path.partition("?")[0]
                rows = [(row, row[2].fullmatch(path)) for row in fake.steps if row[1] == self.command]
                row, found = next(((row, match) for row, match in rows if match), (None, None))
                if row is None or found is None:
                    self.send((404, {"error": f"no such page: {self.command} {path}"}, {}))
                    return
                fault = fake.fault(row[0])
                if fault is not None and fault.what == "half":
                    self.rfile.read(int(self.headers["Content-Length"]) // 2)
                body = b"" if fault is not None and fault.what in ("half", "close") else self.body()
                if fault is None or fault.what == "lost" or isinstance(fault.what, float):
                    fake.seen.append((row[0], body))
                    answer = self.done(row, body, found.groupdict())
                if fault is not None and fault.what in ("half", "close", "lost"):
                    self.close_connection = True
                    self.connection.close()
                    return
                if fault is not None and isinstance(fault.what, float):
                    fake.released.wait(fault.what)
                elif fault is not None and fault.what == "page":
                    answer = (503, "<html>Bad day</html>", {})
                elif fault is not None:
                    answer = (fault.what, {"error": "as asked"}, fault.headers)
                self.send(answer)

            def done(self, row: Any, body: bytes, groups: dict[str, str]) -> Answer:
                name, _, _, function = row
                account = fake.accounts.get(str(self.headers["Authorization"]).removeprefix("Bearer "))
                if account is None and name not in ("validate", "put"):
                    message = {"X-Error-Message": "Invalid credentials in Authorization header"}
                    return 401, {"error": "Invalid credentials"}, message
                with fake._lock:
                    return function(account, body, **groups)

            def body(self) -> bytes:
                if self.headers["Transfer-Encoding"] == "chunked":
                    parts = []
                    while size := int(self.rfile.readline(), 16):
                        parts.append(self.rfile.read(size))
                        self.rfile.readline()
                    self.rfile.readline()
                    return b"".join(parts)
                return self.rfile.read(int(self.headers["Content-Length"] or 0))

            def send(self, answer: Answer) -> None:
                status, content, headers = answer
                data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
                try:
                    self.send_response(status)
                    kind = "text/html" if isinstance(content, str) else "application/json"
                    for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:  # the client has lost its patience
                    self.close_connection = True

        return Handler


def object_id(content: bytes, large: bool) -> str:
    """What the hub calls a file's content: SHA-256 of a large one, git's blob of another."""
    if large:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def metadata_errors(card: str) -> list[str]:
    """What the hub finds wrong with a card's metadata: the rules of its model card specification."""
    block = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    data = yaml.safe_load(block[1]) if block else None
    if not isinstance(data, dict):
        return ["the metadata must be a mapping"]
    errors = []
    for key in ("base_model", "datasets"):
        named = data.get(key) or []
        for name in [named] if isinstance(named, str) else named:
            if not isinstance(name, str) or not MODEL_ID.fullmatch(name):
                errors.append(f'"{key}" with value {name!r} is not valid')
    if "license" in data and data["license"] not in LICENSES:
        errors.append(f'"license" must be one of {sorted(LICENSES)}')
    if data.get("license_name") and data.get("license") != "other":
        errors.append('"license_name" goes with "license: other"')
    for key in ("tags", "metrics"):
        if not all(isinstance(word, str) for word in data.get(key, [])):
            errors.append(f'"{key}" must be a list of strings')
    for model in data.get("model-index", []):
        for at, result in enumerate(model.get("results", [])):
            where = f'"model-index[0].results[{at}]'
            if not isinstance(model.get("name"), str):
                errors.append('"model-index[0].name" must be a string')
            if not result.get("task", {}).get("type"):
                errors.append(f'{where}.task.type" is required')
            data_set = result.get("dataset", {})
            if not data_set.get("name") or not MODEL_ID.fullmatch(str(data_set.get("type", "/"))):
                errors.append(f'{where}.dataset" needs a name and an id as type')
            for metric in result.get("metrics", [{}]):
                if not metric.get("type") or not isinstance(metric.get("value"), int | float | str):
                    errors.append(f'{where}.metrics" need type and value')
    return errors


@contextmanager
def fake_hub(*faults: Fault) -> Iterator[FakeHub]:
    hub = FakeHub(*faults)
    try:
        yield hub
    finally:
        hub.stop()
