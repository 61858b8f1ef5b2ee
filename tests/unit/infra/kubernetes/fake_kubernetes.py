"""A Kubernetes API server for TrainJobs over real HTTP: strict about schemas, rights and tokens, faulty at will.

It knows what the client uses: TrainJobs (create, get, delete), pods (list by label), their logs (streamed in chunks).
A test plays the controller: `on_create` is called with the server and the job, in a thread beside the client's polls;
what a poll is to see together is changed under `changed`.
"""

import copy
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import urllib3
from kubernetes.client import Configuration

from flashslm.infra.kubernetes import client
from flashslm.infra.kubernetes.client import Kubernetes
from tests.manifests.rendering import find, rendered
from tests.manifests.schemas import Invalid, validate

Document = dict[str, Any]

NAMESPACE = "kubeflow"
TRUE = ("1", "t", "T", "true", "TRUE", "True")  # as the API server reads a switch
START = datetime(2026, 11, 1, tzinfo=UTC)


class FakeKubernetes:
    """The server's state. `fail` makes requests fail; `cut_logs_after` cuts that many log streams in mid-line."""

    def __init__(self) -> None:
        self.jobs: dict[str, Document] = {}
        self.pods: dict[str, Document] = {}
        self.logs: dict[str, list[str]] = {}
        self.token = "first-token"
        self.requests: list[str] = []
        self.created: list[str] = []
        self.deleted: list[str] = []
        self.cuts: list[int] = []  # for each of the next log streams, the lines it gives before it is cut
        self.on_create: Callable[[FakeKubernetes, Document], None] = lambda server, job: None
        self.changed = threading.Condition()
        self.closing = False
        self._faults: list[tuple[str, int, bool]] = []
        self._rules = find(rendered("local"), "Role", "flashslm-pipeline", NAMESPACE)["rules"]

    def fail(self, method: str, status: int, *, times: int = 1, done: bool = False) -> None:
        """Answer the next requests of a method with a status; `done` = do what they ask all the same."""
        self._faults += [(method, status, done)] * times

    def fault(self, method: str) -> tuple[int, bool] | None:
        for index, (wanted, status, done) in enumerate(self._faults):
            if wanted == method:
                del self._faults[index]
                return status, done
        return None

    def may(self, verb: str, group: str, resource: str) -> bool:
        return any(
            group in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"]
            for rule in self._rules
            if "resourceNames" not in rule
        )

    # What a controller does

    def add_pod(self, job: str, index: int = 0, attempt: int = 0, phase: str = "Running", **status: Any) -> str:
        name = f"{job}-node-0-{index}-{attempt}"
        labels = {
            "jobset.sigs.k8s.io/jobset-name": job,
            "jobset.sigs.k8s.io/replicatedjob-name": "node",
            "batch.kubernetes.io/job-completion-index": str(index),
        }
        created = (START + timedelta(hours=attempt)).isoformat()
        with self.changed:
            self.pods[name] = {
                "metadata": {"name": name, "labels": labels, "creationTimestamp": created},
                "status": {"phase": phase, **status},
            }
            self.logs.setdefault(name, [])
            self.changed.notify_all()
        return name

    def end_pod(self, name: str, exit_code: int = 0, reason: str = "Completed", finished_at: str = "") -> None:
        terminated = {"exitCode": exit_code, "reason": reason, "finishedAt": finished_at}
        with self.changed:
            status = self.pods[name]["status"]
            status["phase"] = "Failed" if exit_code else "Succeeded"
            status["containerStatuses"] = [{"name": "node", "state": {"terminated": terminated}}]
            self.changed.notify_all()

    def log(self, pod: str, *lines: str) -> None:
        """Add lines, a tenth of a second apart; fractions lose zeros at their end, as in Kubernetes."""
        with self.changed:
            for line in lines:
                at = START + timedelta(seconds=len(self.logs[pod]) / 10)
                fraction = f"{at:%f}".rstrip("0")
                self.logs[pod].append(f"{at:%Y-%m-%dT%H:%M:%S}{'.' + fraction if fraction else ''}Z {line}")
            self.changed.notify_all()

    def end_job(self, name: str, kind: str, reason: str = "", message: str = "") -> None:
        condition = {"type": kind, "status": "True", "reason": reason, "message": message}
        with self.changed:
            self.jobs[name]["status"] = {"conditions": [condition]}
            self.changed.notify_all()

    def finished(self, pod: str) -> bool:
        found = self.pods.get(pod)
        return self.closing or found is None or found["status"]["phase"] != "Running"


class _Refused(Exception):
    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: FakeKubernetes

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle("GET")

    def do_POST(self) -> None:
        self._handle("POST")

    def do_DELETE(self) -> None:
        self._handle("DELETE")

    def _handle(self, method: str) -> None:
        state = self.server_state
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        split = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(split.query).items()}
        state.requests.append(f"{method} {split.path}")
        scheme, _, token = str(self.headers.get("Authorization")).partition(" ")
        try:
            if (scheme.lower(), token) != ("bearer", state.token):
                raise _Refused(401, "Unauthorized")
            fault = state.fault(method)
            if fault and not fault[1]:
                raise _Refused(fault[0], "a fault")
            answer = self._answer(method, split.path, query, body)
            if fault:
                raise _Refused(fault[0], "a fault after the deed")
            if answer is not None:
                self._send(200, answer)
        except _Refused as error:
            self._send(error.status, {"kind": "Status", "status": "Failure", "message": str(error)})

    def _answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> Document | None:
        state = self.server_state
        parts = path.strip("/").split("/")
        group = "" if parts[0] == "api" else parts[1]
        _, namespace, resource, *rest = parts[2 if group == "" else 3 :]
        if namespace != NAMESPACE:
            raise _Refused(403, f"forbidden in namespace {namespace}")
        kind = f"{resource}/{rest[1]}" if len(rest) > 1 else resource
        verb = {"POST": "create", "DELETE": "delete", "GET": "get" if rest else "list"}[method]
        if not state.may(verb, group, kind):
            raise _Refused(403, f"cannot {verb} resource {kind} in API group {group!r}")
        if kind == "pods/log":
            self._stream(rest[0], query)
            return None
        if kind == "pods":
            wanted = dict(pair.split("=") for pair in query["labelSelector"].split(","))
            with state.changed:  # the controller's thread changes them
                found = [p for p in state.pods.values() if wanted.items() <= p["metadata"]["labels"].items()]
                return {"kind": "PodList", "items": copy.deepcopy(found)}
        return self._create(json.loads(body)) if verb == "create" else self._one(verb, rest[0], body)

    def _create(self, job: Document) -> Document:
        state = self.server_state
        try:
            validate(job)
        except Invalid as error:
            raise _Refused(422, str(error)) from None
        name = job["metadata"]["name"]
        with state.changed:
            if name in state.jobs:
                raise _Refused(409, f"trainjobs {name} already exists")
            job["metadata"]["uid"] = str(uuid.uuid4())
            state.jobs[name] = job
            state.created.append(name)
        threading.Thread(target=state.on_create, args=(state, job), daemon=True).start()
        return job

    def _one(self, verb: str, name: str, body: bytes) -> Document:
        """Get or delete; a job that is being deleted is still there for one more reading, as with finalizers."""
        state = self.server_state
        with state.changed:
            if name not in state.jobs:
                raise _Refused(404, f"trainjobs {name} not found")
            job = state.jobs[name]
            if verb == "delete":
                uid = json.loads(body).get("preconditions", {}).get("uid")
                if uid not in (None, job["metadata"].get("uid")):
                    raise _Refused(409, "the UID in the precondition does not match the UID in record")
                state.deleted.append(name)
                job["metadata"]["deletionTimestamp"] = START.isoformat()
            elif "deletionTimestamp" in job["metadata"]:
                del state.jobs[name]
                for pod in [p for p in state.pods if p.startswith(name)]:
                    del state.pods[pod]
            return copy.deepcopy(job)

    def _stream(self, pod: str, query: dict[str, str]) -> None:
        state = self.server_state
        if pod not in state.pods:
            raise _Refused(404, f"pods {pod} not found")
        cut_after = state.cuts.pop(0) if state.cuts and query.get("follow") in TRUE else -1
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for count, line in enumerate(self._lines(pod, query)):
            if count == cut_after:
                self._chunk(line[: len(line) // 2])
                self.close_connection = True
                self.connection.close()
                return
            self._chunk(line + "\n")
        self._chunk("")

    def _lines(self, pod: str, query: dict[str, str]) -> Iterator[str]:
        state, sent, since = self.server_state, 0, ""
        if age_s := int(query.get("sinceSeconds", 0)):
            since = f"{datetime.now(UTC) - timedelta(seconds=age_s):%Y-%m-%dT%H:%M:%S}"
        if tail := int(query.get("tailLines", 0)):
            sent = max(0, len(state.logs[pod]) - tail)
        while True:
            with state.changed:
                fresh, done = state.logs[pod][sent:], query.get("follow") not in TRUE or state.finished(pod)
                if not fresh and not done:
                    state.changed.wait(0.05)
            sent += len(fresh)
            for line in fresh:
                stamp, _, text = line.partition(" ")
                if stamp[:19] >= since:
                    yield line if query.get("timestamps") in TRUE else text
            if done and not fresh:
                return

    def _chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _send(self, status: int, answer: Document) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(state: FakeKubernetes, directory: Path) -> Iterator[str]:
    """Serve on a free port; `directory` becomes a pod's service account. Yields the address."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "token").write_text(state.token)
    (directory / "namespace").write_text(NAMESPACE)
    handler = type("Handler", (_Handler,), {"server_state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        state.closing = True
        server.shutdown()
        server.server_close()
        thread.join()


def client_of(address: str, account: Path, retries: urllib3.Retry = client._RETRIES) -> Kubernetes:
    """A client of the server with the token of its service account."""
    configuration = Configuration(host=address)
    configuration.api_key["authorization"] = f"Bearer {(account / 'token').read_text()}"
    return Kubernetes(configuration, NAMESPACE, retries)
