"""A TrainJob from a step: created, adopted, followed, removed; against a server that fails in every way we know of."""

import copy
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flashslm.config import PlatformConfig
from flashslm.infra.kubernetes import client, train_job
from flashslm.infra.kubernetes.client import Kubernetes, KubernetesError
from flashslm.infra.kubernetes.train_job import TrainJob, TrainJobFailed
from flashslm.launch.kfp.cluster_pass import for_cluster, step_of
from tests.unit.infra.kubernetes.fake_kubernetes import FakeKubernetes, serving, soon

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


@pytest.fixture(scope="module")
def template() -> Document:
    return template_of(PLATFORM)[1]


@pytest.fixture
def manifest(template: Document) -> Document:
    job = copy.deepcopy(template)
    job["metadata"]["name"] = NAME
    job["spec"]["trainer"]["command"] = ["python", "-m", "torch.distributed.run"]
    return job


@pytest.fixture
def server() -> FakeKubernetes:
    return FakeKubernetes()


@pytest.fixture
def address(server: FakeKubernetes, tmp_path: Path) -> Iterator[str]:
    with serving(server, tmp_path / "account") as url:
        yield url


@pytest.fixture
def api(address: str, tmp_path: Path) -> Kubernetes:
    quick = client._RETRIES.new(backoff_factor=0.001)
    return Kubernetes(address, tmp_path / "account", quick)


class Watched:
    """A job and what it logged."""

    def __init__(self, api: Kubernetes, manifest: Document):
        self.lines: list[str] = []
        self.statuses: list[str] = []
        self.job = TrainJob(api, manifest, self.lines.append, self.statuses.append, poll_s=0.02)


@pytest.fixture
def watched(api: Kubernetes, manifest: Document) -> Watched:
    return Watched(api, manifest)


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


LINES = tuple(f"line {number}" for number in range(25))


def test_template_is_a_train_job_of_trainer_2_3(manifest: Document) -> None:
    from tests.manifests.schemas import validate

    validate(manifest)
    trainer = manifest["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"], train_job.world_size(manifest)) == (2, 8, 16)
    assert trainer["resourcesPerNode"]["limits"] == {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "8"}
    assert manifest["spec"]["activeDeadlineSeconds"] == 604_800
    assert manifest["spec"]["runtimeRef"] == {"name": "flashslm-torch"}
    assert {"name": "FLASHSLM_PATIENCE_S", "value": "900"} in trainer["env"]
    (patch,) = manifest["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]
    assert pod["metadata"]["labels"]["app.kubernetes.io/part-of"] == "flashslm"
    assert pod["spec"]["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H200"}
    assert pod["spec"]["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod["spec"]["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["spec"]["volumes"] == [  # not the secret of the search's database
        {"name": "flashslm-s3", "secret": {"secretName": "flashslm-s3", "optional": True}},
        {"name": "flashslm-mlflow", "secret": {"secretName": "flashslm-mlflow", "optional": True}},
        {"name": "flashslm", "configMap": {"name": "flashslm", "optional": True}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}},
    ]


def test_the_steps_own_pod_only_watches() -> None:
    container, template = template_of(PLATFORM)
    assert "accelerator" not in container["resources"] and container["resources"]["resourceMemoryLimit"] == "1Gi"
    assert container["resources"]["resourceCpuRequest"] == "500m"
    assert template["spec"]["trainer"]["image"] == container["image"] == PLATFORM.image
    container, template = template_of(PLATFORM.model_copy(update={"nodes": 1}))
    assert container["resources"]["accelerator"]["resourceCount"] == "8" and template == {}


def test_without_gpus_there_is_one_process_a_node(tmp_path: Path) -> None:
    _, template = template_of(PlatformConfig.model_validate({"nodes": 3, "gpu_steps": {"gpus": 0}}))
    assert train_job.world_size(template) == 3
    assert "nvidia.com/gpu" not in template["spec"]["trainer"]["resourcesPerNode"]["limits"]


def test_a_job_is_created_followed_and_removed(server: FakeKubernetes, watched: Watched) -> None:
    server.on_create = trains(*LINES)
    watched.job.run()
    assert watched.lines == list(LINES)
    assert watched.statuses[0] == f"TrainJob {NAME} created"
    assert server.created == server.deleted == [NAME]


def test_a_living_job_is_adopted(server: FakeKubernetes, watched: Watched, manifest: Document) -> None:
    server.jobs[NAME] = copy.deepcopy(manifest)
    trains(*LINES)(server, manifest)
    watched.job.run()
    assert (watched.lines, server.created) == (list(LINES), [])
    assert "adopts it" in watched.statuses[0]


def test_a_failed_job_is_made_anew(server: FakeKubernetes, watched: Watched, manifest: Document) -> None:
    server.jobs[NAME] = copy.deepcopy(manifest)
    server.end_job(NAME, "Failed")
    server.on_create = trains("again")
    watched.job.run()
    assert (watched.lines, server.created, server.deleted) == (["again"], [NAME], [NAME, NAME])


def test_a_job_that_is_being_deleted_is_waited_for(
    server: FakeKubernetes, watched: Watched, manifest: Document
) -> None:
    server.jobs[NAME] = manifest | {"metadata": {"name": NAME, "deletionTimestamp": "2026-11-01T00:00:00Z"}}
    server.on_create = trains("again")
    watched.job.run()
    assert (watched.lines, server.created) == (["again"], [NAME])


def test_a_lost_answer_does_not_make_a_second_job(server: FakeKubernetes, watched: Watched) -> None:
    """The server creates the job and answers 500; the client's own retry then meets 409."""
    server.fail("POST", 500, done=True)
    server.on_create = trains("once")
    watched.job.run()
    assert (watched.lines, server.created) == (["once"], [NAME])
    assert "adopts it" in watched.statuses[0]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(server: FakeKubernetes, watched: Watched, status: int) -> None:
    for method in ("POST", "GET", "DELETE"):
        server.fail(method, status, times=3)
    server.on_create = trains(*LINES)
    watched.job.run()
    assert (watched.lines, server.created) == (list(LINES), [NAME])


def test_a_server_that_stays_away_is_an_error_and_the_job_lives(server: FakeKubernetes, watched: Watched) -> None:
    server.on_create = lambda server, job: server.fail("GET", 503, times=100)
    with pytest.raises(KubernetesError, match=r"GET .*trainjobs/flashslm-.*: 503 .*a fault"):
        watched.job.run()
    assert NAME in server.jobs and server.deleted == []


def test_a_cut_log_goes_on_where_it_was(server: FakeKubernetes, watched: Watched) -> None:
    server.cuts = [0, 3, 7, 1]

    def script(server: FakeKubernetes, job: Document) -> None:
        pod = server.add_pod(NAME)
        server.log(pod, *LINES)
        soon(lambda: not server.cuts)
        server.end_pod(pod)
        server.end_job(NAME, "Complete")

    server.on_create = script
    watched.job.run()
    assert watched.lines == list(LINES) and server.cuts == []


def test_a_restart_gives_the_log_of_the_new_pod_too(server: FakeKubernetes, watched: Watched) -> None:
    def script(server: FakeKubernetes, job: Document) -> None:
        first = server.add_pod(NAME, attempt=0)
        server.log(first, "first attempt")
        soon(lambda: watched.lines == ["first attempt"])
        server.end_pod(first, 137, "OOMKilled")
        second = server.add_pod(NAME, attempt=1)
        server.log(second, "second attempt")
        server.end_pod(second)
        server.end_job(NAME, "Complete")

    server.on_create = script
    watched.job.run()
    assert watched.lines == ["first attempt", "second attempt"]


def test_a_failed_job_tells_the_reason_of_the_pod_that_failed_first(server: FakeKubernetes, watched: Watched) -> None:
    def script(server: FakeKubernetes, job: Document) -> None:
        pods = [server.add_pod(NAME, index) for index in (0, 1)]
        server.log(pods[0], "NCCL: a peer is gone")
        server.log(pods[1], *(f"step {number}" for number in range(30)), "CUDA out of memory")
        server.end_pod(pods[1], 137, "OOMKilled", "2026-11-01T00:00:05Z")
        server.end_pod(pods[0], 1, "Error", "2026-11-01T00:00:09Z")
        server.end_job(NAME, "Failed", "FailedJobs", "jobset failed")

    server.on_create = script
    with pytest.raises(TrainJobFailed) as caught:
        watched.job.run()
    text = str(caught.value)
    assert text.startswith(
        f"TrainJob {NAME} failed (FailedJobs): jobset failed\npod {NAME}-node-0-1-0: OOMKilled, exit"
    )
    assert "exit code 137; its last lines:" in text and "  CUDA out of memory" in text and "step 11" in text
    assert "step 10\n" not in text and "peer" not in text
    assert watched.lines == ["NCCL: a peer is gone"]
    assert NAME in server.jobs, "a failed job stays to be looked at"


def test_an_evicted_pod_is_a_reason_too(server: FakeKubernetes, watched: Watched) -> None:
    def script(server: FakeKubernetes, job: Document) -> None:
        server.add_pod(NAME, phase="Failed", reason="Evicted", message="The node was low on memory.")
        server.end_job(NAME, "Failed", "FailedJobs")

    server.on_create = script
    with pytest.raises(TrainJobFailed, match=r"pod .*: Evicted The node was low on memory"):
        watched.job.run()


def test_a_job_deleted_by_hand_is_an_error(server: FakeKubernetes, watched: Watched) -> None:
    def script(server: FakeKubernetes, job: Document) -> None:
        pod = server.add_pod(NAME)
        server.log(pod, "a line")
        soon(lambda: watched.lines == ["a line"])
        with server.changed:
            del server.jobs[NAME], server.pods[pod]
            server.changed.notify_all()

    server.on_create = script
    with pytest.raises(TrainJobFailed, match="is gone: it was deleted"):
        watched.job.run()


def test_pods_that_wait_say_why(server: FakeKubernetes, watched: Watched) -> None:
    waiting = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes: insufficient nvidia.com/gpu"}

    def script(server: FakeKubernetes, job: Document) -> None:
        server.add_pod(NAME, 0, phase="Pending", conditions=[waiting])
        server.add_pod(NAME, 1, phase="Pending")
        soon(lambda: any("insufficient" in status for status in watched.statuses))
        trains("at last")(server, job)

    server.on_create = script
    watched.job.run()
    assert watched.lines == ["at last"]
    expected = f"pods: 2 Pending; {NAME}-node-0-0-0 waits: 0/3 nodes: insufficient nvidia.com/gpu"
    assert expected in watched.statuses and watched.statuses.count(expected) == 1


def test_a_job_that_holds_a_part_says_who_holds_the_rest(server: FakeKubernetes, watched: Watched) -> None:
    waiting = {"type": "PodScheduled", "status": "False", "message": "0/2 nodes: insufficient nvidia.com/gpu"}
    server.add_pod("flashslm-other", 0)

    def script(server: FakeKubernetes, job: Document) -> None:
        server.add_pod(NAME, 0, phase="Pending", conditions=[waiting])
        server.add_pod(NAME, 1)
        soon(lambda: any("meanwhile" in status for status in watched.statuses))
        trains()(server, job)

    server.on_create = script
    watched.job.run()
    assert watched.statuses[1] == (
        f"pods: 1 Pending, 1 Running; {NAME}-node-0-0-0 waits: 0/2 nodes: insufficient nvidia.com/gpu; "
        "pods that run meanwhile: this job (1), flashslm-other (1)"
    )


def test_with_a_queue_the_whole_job_waits(server: FakeKubernetes, api: Kubernetes) -> None:
    _, queued = template_of(PLATFORM.model_copy(update={"queue": "training"}))
    queued["metadata"]["name"] = NAME
    queued["spec"]["trainer"]["command"] = ["python"]
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "training"
    watched = Watched(api, queued)

    def script(server: FakeKubernetes, job: Document) -> None:
        job["spec"]["suspend"] = True  # as Kueue's webhook does
        server.jobs[NAME] = job
        soon(lambda: len(watched.statuses) > 1)
        job["spec"]["suspend"] = False
        trains("at last")(server, job)

    server.on_create = script
    watched.job.run()
    assert watched.statuses[1] == "the whole job waits in Kueue's queue 'training'"
    assert watched.lines == ["at last"]


def test_without_a_queue_there_is_no_label(manifest: Document) -> None:
    assert not [label for label in manifest["metadata"]["labels"] if "kueue" in label]


def test_an_invalid_job_is_refused_with_the_field(server: FakeKubernetes, api: Kubernetes, manifest: Document) -> None:
    manifest["spec"]["podTemplateOverrides"] = []
    with pytest.raises(KubernetesError, match=r"422 .*podTemplateOverrides"):
        Watched(api, manifest).job.run()
    assert server.jobs == {}


def test_env_of_the_node_container_belongs_to_the_trainer(api: Kubernetes, manifest: Document) -> None:
    replicated = manifest["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    replicated["template"]["spec"]["template"]["spec"]["containers"][0]["env"] = [{"name": "A", "value": "b"}]
    with pytest.raises(KubernetesError, match=r"422 .*env of container 'node' belongs to spec.trainer"):
        Watched(api, manifest).job.run()


def test_a_rotated_token_is_used_at_once(
    server: FakeKubernetes, api: Kubernetes, watched: Watched, tmp_path: Path
) -> None:
    server.token = "second-token"
    with pytest.raises(KubernetesError, match=r"401 .*Unauthorized"):
        watched.job.run()
    (tmp_path / "account" / "token").write_text("second-token\n")
    server.on_create = trains("in")
    watched.job.run()
    assert watched.lines == ["in"]


def test_outside_a_cluster_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(KubernetesError, match=r"set platform.nodes to 1"):
        Kubernetes.in_cluster()


def test_in_a_pod_the_address_is_that_of_the_environment(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "SERVICE_ACCOUNT", tmp_path / "account")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    found = Kubernetes.in_cluster()
    assert (found.url, found.namespace) == ("https://[fd00::1]:6443", "kubeflow")


SCRIPT = """
import json, sys
from pathlib import Path
from flashslm.infra.process.interrupts import terminable
from flashslm.infra.kubernetes.client import Kubernetes
from flashslm.infra.kubernetes.train_job import TrainJob
url, account, manifest = sys.argv[1:]
with terminable():
    TrainJob(Kubernetes(url, Path(account)), json.loads(manifest), print, print, poll_s=0.05).run()
"""


def test_sigterm_deletes_the_job(server: FakeKubernetes, address: str, tmp_path: Path, manifest: Document) -> None:
    server.on_create = lambda server, job: server.log(server.add_pod(NAME), "training")
    command = [sys.executable, "-u", "-c", SCRIPT, address, str(tmp_path / "account"), json.dumps(manifest)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    killer = threading.Timer(60, process.kill)
    killer.start()
    for line in process.stdout:
        if line == "training\n":
            process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    killer.cancel()
    assert (server.created, server.deleted) == ([NAME], [NAME])


def test_the_client_asks_nothing_beyond_its_rights(server: FakeKubernetes, api: Kubernetes) -> None:
    """The server's rights are those of manifests/: it refuses what the Role does not name."""
    with pytest.raises(KubernetesError, match=r"403 .*cannot list resource trainjobs"):
        api.request("GET", api.resource(train_job.API_VERSION, "trainjobs"))
