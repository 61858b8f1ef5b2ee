"""TrainJobs for tests: the template of a recipe, a job that is watched, a controller under which it trains."""

import json
from collections.abc import Callable
from typing import Any

from flashslm.config import PlatformConfig
from flashslm.infra.kubernetes import train_job
from flashslm.infra.kubernetes.client import Kubernetes
from flashslm.infra.kubernetes.train_job import TrainJob
from flashslm.infra.process.interrupts import Terminated
from flashslm.launch.kfp.cluster_pass import for_cluster
from flashslm.launch.labels import step_of
from tests.unit.infra.kubernetes.fake_kubernetes import FakeKubernetes

Document = dict[str, Any]

NAME = "flashslm-0123456789abcdef0123456789abcdef"
PLATFORM = PlatformConfig.model_validate(
    {
        "nodes": 2,
        "image": "registry.example/flashslm@sha256:" + "ab" * 32,
        "image_pull_secret": "registry",
        "gpu_types": {"h200": {"node_selector": {"nvidia.com/gpu.product": "NVIDIA-H200"}}},
        "steps": {"pretrain": {"gpus": 8, "gpu_type": "h200", "timeout_s": 604_800}},
    }
)


def template_of(platform: PlatformConfig) -> tuple[Document, Document]:
    """The pretrain executor's container of the compiled pipeline, and the TrainJob that its environment holds."""
    spec = for_cluster("design_and_train", platform).spec
    (container,) = [
        executor["container"]
        for executor in spec["deploymentSpec"]["executors"].values()
        if step_of(executor["container"]) == "pretrain"
    ]
    values = {variable["name"]: variable["value"] for variable in container.get("env", [])}
    assert not any("{{" in value for value in values.values()), "KFP would read a placeholder"
    return container, json.loads(values.get(train_job.VARIABLE, "{}"))


class Lines:
    """Hears the lines of a job, and restarts as `restart`; `last` is the line after which it would fail again."""

    def __init__(self, on_line: Callable[[str], object], last: str = ""):
        self._on_line, self._last, self._seen = on_line, last, False

    def line(self, text: str) -> None:
        self._seen = self._seen or text == self._last
        self._on_line(text)

    def restarted(self) -> None:
        self._on_line("restart")

    def fails_again(self) -> bool:
        return self._seen


class Watched:
    """A job and what it logged."""

    def __init__(self, api: Kubernetes, manifest: Document, run_id: str = "", is_watched: bool = True):
        self.lines: list[str] = []
        self.statuses: list[str] = []
        self.job = TrainJob(api, manifest, Lines(self._line), self.statuses.append, run_id, is_watched, poll_s=0.02)
        self.cancel_at = ""  # the line at which the step is cancelled

    def _line(self, line: str) -> None:
        self.lines.append(line)
        if line == self.cancel_at:
            raise Terminated(143)


def trains(*lines: str) -> Callable[[FakeKubernetes, Document], None]:
    """A controller under which two pods run, the first one logs, and the job completes."""

    def script(server: FakeKubernetes, job: Document) -> None:
        name = job["metadata"]["name"]
        first = server.add_pod(name, 0)
        second = server.add_pod(name, 1)
        for line in lines:
            server.log(first, line)
        for pod in (first, second):
            server.end_pod(pod)
        server.end_job(name, "Complete")

    return script
