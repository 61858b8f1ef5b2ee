"""A KFP API server (v2beta1) for tests: the endpoints that launches use, over HTTP, in memory.

Bodies are read and written by the models of kfp_server_api, so that a field that the API does not have is an error in
both directions. Faults are set in advance: `server.fail("POST", "/runs$", 503, times=2)`.
"""

import json
import re
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import kfp_server_api as api
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from tests.pipeline.fake_kfp_http import PREFIX, Fault, Handler, Refused, Text, read


class FakeKfp:
    """The server and what it holds; every list is in the order of creation."""

    def __init__(self, token: str = "", multi_user: bool = False, page_limit: int = 100):
        self.token, self.multi_user, self.page_limit = token, multi_user, page_limit
        self.pipelines: list[Any] = []
        self.versions: list[Any] = []
        self.experiments: list[Any] = []
        self.runs: list[Any] = []
        self.recurring_runs: list[Any] = []
        self.specs: dict[str, dict[str, Any]] = {}  # pipeline version -> specification
        self.script: list[
            tuple[str, dict[str, Any] | None]
        ] = []  # state and workflow that the next looks at a run show
        self.workflows: dict[str, dict[str, Any]] = {}  # run -> Argo's workflow; without one KFP's older API has none
        self.logs: dict[str, str] = {}  # pod -> its log
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.slow = threading.Event()  # set: what is slow may be answered
        self._lock = threading.RLock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"fake": self}))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> "FakeKfp":
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def fail(self, method: str, path: str, kind: int | str, times: int = 1, **headers: str) -> None:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.faults.append(Fault(method, path, kind, times, headers))

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    def count(self, method: str, path: str) -> int:
        return sum(bool(re.search(f"^{method} .*{path}$", line)) for line in self.requests)

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Any:
        for route, pattern, handler in ROUTES:
            whole = pattern if pattern.startswith("/apis/") else PREFIX + pattern
            if method == route and (match := re.fullmatch(whole, path)):
                with self._lock:
                    return handler(self, query, body, *map(unquote, match.groups()))
        raise Refused(404, f"no route {method} {path}")

    def namespaced(self, namespace: str | None) -> str:
        if bool(namespace) != self.multi_user:
            raise Refused(
                400, "a namespace is " + ("required" if self.multi_user else "not allowed in single-user mode")
            )
        return namespace or ""

    def page(self, objects: list[Any], query: dict[str, str]) -> tuple[list[Any], str | None]:
        if "filter" in query:
            for predicate in read("V2beta1Filter", json.loads(query["filter"])).predicates:
                assert (predicate.operation, predicate.key) == ("EQUALS", "display_name")
                objects = [o for o in objects if o.display_name == predicate.string_value]
        if query.get("sort_by") == "created_at desc":
            objects = objects[::-1]
        start, size = int(query.get("page_token") or 0), min(int(query.get("page_size", 10)), self.page_limit)
        following = str(start + size) if start + size < len(objects) else None
        return objects[start : start + size], following

    def version_of(self, reference: Any) -> Any:
        """The version that a reference means: the latest where it names only the pipeline."""
        found = [v for v in self.versions if v.pipeline_id == reference.pipeline_id]
        if reference.pipeline_version_id:
            found = [v for v in found if v.pipeline_version_id == reference.pipeline_version_id]
        if not found:
            raise Refused(404, "pipeline version not found")
        return found[-1]


def one(objects: list[Any], field_name: str, value: str) -> Any:
    for item in objects:
        if getattr(item, field_name) == value:
            return item
    raise Refused(404, f"{field_name} {value} not found")


def check_arguments(spec: dict[str, Any], config: Any) -> None:
    declared = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    given = dict(config.parameters or {}) if config else {}
    wrong = [name for name in given if name not in declared]
    wrong += [name for name, value in declared.items() if name not in given and not value.get("isOptional")]
    if wrong:
        raise Refused(400, f"parameters do not fit the pipeline: {', '.join(wrong)}")


def healthz(fake: FakeKfp, query: dict[str, str], body: Any) -> Any:
    return api.V2beta1GetHealthzResponse(multi_user=fake.multi_user, pipeline_store="database")


def create_pipeline(fake: FakeKfp, query: dict[str, str], body: Any) -> Any:
    pipeline = read("V2beta1Pipeline", body)
    fake.namespaced(pipeline.namespace)
    if any(p.name == pipeline.name for p in fake.pipelines):
        raise Refused(409, f"pipeline {pipeline.name} already exists")
    pipeline.pipeline_id, pipeline.created_at = str(uuid.uuid4()), datetime.now(UTC)
    fake.pipelines.append(pipeline)
    return pipeline


def get_pipeline_by_name(fake: FakeKfp, query: dict[str, str], body: Any, name: str) -> Any:
    fake.namespaced(query.get("namespace"))
    return one(fake.pipelines, "name", name)


def list_versions(fake: FakeKfp, query: dict[str, str], body: Any, pipeline_id: str) -> Any:
    found, token = fake.page([v for v in fake.versions if v.pipeline_id == pipeline_id], query)
    return api.V2beta1ListPipelineVersionsResponse(pipeline_versions=found, next_page_token=token)


def upload_version(fake: FakeKfp, query: dict[str, str], body: Any) -> Any:
    spec, platform = yaml.safe_load_all(body)
    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    pipeline = one(fake.pipelines, "pipeline_id", query["pipelineid"])
    if any(v.display_name == query["name"] and v.pipeline_id == pipeline.pipeline_id for v in fake.versions):
        raise Refused(409, "Failed to create a pipeline version")
    version = api.V2beta1PipelineVersion(
        pipeline_id=pipeline.pipeline_id,
        pipeline_version_id=str(uuid.uuid4()),
        name=query["name"],
        display_name=query["name"],
        created_at=datetime.now(UTC),
    )
    fake.versions.append(version)
    fake.specs[version.pipeline_version_id] = spec
    return version


def create_experiment(fake: FakeKfp, query: dict[str, str], body: Any) -> Any:
    experiment = read("V2beta1Experiment", body)
    fake.namespaced(experiment.namespace)
    if any(e.display_name == experiment.display_name for e in fake.experiments):
        raise Refused(409, f"experiment {experiment.display_name} already exists")
    experiment.experiment_id = str(uuid.uuid4())
    fake.experiments.append(experiment)
    return experiment


def list_experiments(fake: FakeKfp, query: dict[str, str], body: Any) -> Any:
    fake.namespaced(query.get("namespace"))
    found, token = fake.page(fake.experiments, query)
    return api.V2beta1ListExperimentsResponse(experiments=found, next_page_token=token)


def create_run(fake: FakeKfp, query: dict[str, str], body: Any) -> Any:
    run = read("V2beta1Run", body)
    version = fake.version_of(run.pipeline_version_reference)
    one(fake.experiments, "experiment_id", run.experiment_id)
    check_arguments(fake.specs[version.pipeline_version_id], run.runtime_config)
    run.run_id, run.state, run.created_at = str(uuid.uuid4()), "PENDING", datetime.now(UTC)
    run.finished_at = datetime.fromtimestamp(0, UTC)
    fake.runs.append(run)
    return run


def get_run(fake: FakeKfp, query: dict[str, str], body: Any, run_id: str) -> Any:
    run = one(fake.runs, "run_id", run_id)
    if fake.script:
        run.state, workflow = fake.script.pop(0)
        fake.workflows = {run_id: workflow} if workflow else {}
    if run.pipeline_spec is None:
        version = fake.version_of(run.pipeline_version_reference)
        run.pipeline_spec = {"pipeline_spec": fake.specs[version.pipeline_version_id]}
    return run


def get_run_v1beta1(fake: FakeKfp, query: dict[str, str], body: Any, run_id: str) -> Any:
    if run_id not in fake.workflows:
        raise Refused(404, "no such run")
    return {"run": {"id": run_id}, "pipeline_runtime": {"workflow_manifest": json.dumps(fake.workflows[run_id])}}


def get_log(fake: FakeKfp, query: dict[str, str], body: Any, run_id: str, pod: str) -> Any:
    one(fake.runs, "run_id", run_id)
    if pod not in fake.logs:
        raise Refused(404, "no log")
    return Text(fake.logs[pod])


def list_runs(fake: FakeKfp, query: dict[str, str], body: Any) -> Any:
    runs = fake.runs
    if "experiment_id" in query:
        runs = [r for r in runs if r.experiment_id == query["experiment_id"]]
    else:
        fake.namespaced(query.get("namespace"))
    found, token = fake.page(runs, query)
    return api.V2beta1ListRunsResponse(runs=found, next_page_token=token)


def terminate_run(fake: FakeKfp, query: dict[str, str], body: Any, run_id: str) -> Any:
    one(fake.runs, "run_id", run_id).state = "CANCELING"
    return {}


def create_recurring_run(fake: FakeKfp, query: dict[str, str], body: Any) -> Any:
    recurring = read("V2beta1RecurringRun", body)
    if len(recurring.trigger.cron_schedule.cron.split()) != 6:
        raise Refused(400, f"cron '{recurring.trigger.cron_schedule.cron}' has not 6 fields")
    if not 1 <= int(recurring.max_concurrency) <= 10:
        raise Refused(400, "max_concurrency is out of [1, 10]")
    version = fake.version_of(recurring.pipeline_version_reference)
    one(fake.experiments, "experiment_id", recurring.experiment_id)
    check_arguments(fake.specs[version.pipeline_version_id], recurring.runtime_config)
    recurring.recurring_run_id, recurring.created_at = str(uuid.uuid4()), datetime.now(UTC)
    recurring.status = {"ENABLE": "ENABLED", "DISABLE": "DISABLED"}[recurring.mode]
    fake.recurring_runs.append(recurring)
    return recurring


def list_recurring_runs(fake: FakeKfp, query: dict[str, str], body: Any) -> Any:
    fake.namespaced(query.get("namespace"))
    found, token = fake.page(fake.recurring_runs, query)
    return api.V2beta1ListRecurringRunsResponse(recurring_runs=found, next_page_token=token)


def get_by_id(field: str, attribute: str) -> Callable[..., Any]:
    def get(fake: FakeKfp, query: dict[str, str], body: Any, *ids: str) -> Any:
        return one(getattr(fake, field), attribute, ids[-1])

    return get


def set_status(status: str) -> Callable[..., Any]:
    def change(fake: FakeKfp, query: dict[str, str], body: Any, identity: str) -> Any:
        one(fake.recurring_runs, "recurring_run_id", identity).status = status
        return {}

    return change


def delete_recurring_run(fake: FakeKfp, query: dict[str, str], body: Any, identity: str) -> Any:
    fake.recurring_runs.remove(one(fake.recurring_runs, "recurring_run_id", identity))
    return {}


ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "/healthz", healthz),
    ("POST", "/pipelines", create_pipeline),
    ("GET", "/pipelines/names/([^/]+)", get_pipeline_by_name),
    ("GET", "/pipelines/([^/]+)/versions", list_versions),
    ("GET", "/pipelines/([^/]+)", get_by_id("pipelines", "pipeline_id")),
    ("GET", "/pipelines/([^/]+)/versions/([^/]+)", get_by_id("versions", "pipeline_version_id")),
    ("POST", "/pipelines/upload_version", upload_version),
    ("POST", "/experiments", create_experiment),
    ("GET", "/experiments", list_experiments),
    ("POST", "/runs", create_run),
    ("GET", "/runs", list_runs),
    ("GET", "/runs/([^/:]+)", get_run),
    ("GET", "/apis/v1beta1/runs/([^/:]+)", get_run_v1beta1),
    ("GET", "/apis/v1alpha1/runs/([^/:]+)/nodes/([^/]+)/log", get_log),
    ("POST", "/runs/([^/:]+):terminate", terminate_run),
    ("POST", "/recurringruns", create_recurring_run),
    ("GET", "/recurringruns", list_recurring_runs),
    ("GET", "/recurringruns/([^/:]+)", get_by_id("recurring_runs", "recurring_run_id")),
    ("POST", "/recurringruns/([^/:]+):enable", set_status("ENABLED")),
    ("POST", "/recurringruns/([^/:]+):disable", set_status("DISABLED")),
    ("DELETE", "/recurringruns/([^/:]+)", delete_recurring_run),
]
