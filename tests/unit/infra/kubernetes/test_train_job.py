"""A TrainJob from a step: created, adopted, followed, removed; against a server that fails in every way we know of."""

import copy
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flashslm.infra.kubernetes.client import Kubernetes, KubernetesError
from flashslm.infra.kubernetes.train_job import TrainJob, TrainJobFailed
from tests.unit.infra.kubernetes.fake_kubernetes import FakeKubernetes
from tests.unit.infra.kubernetes.jobs import NAME, PLATFORM, Document, Lines, Watched, template_of, trains
from tests.waiting import wait_until

LINES = tuple(f"line {number}" for number in range(25))


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


def test_a_failed_job_is_created_again(server: FakeKubernetes, watched: Watched, manifest: Document) -> None:
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
    with pytest.raises(KubernetesError, match=r"(get trainjobs|list pods): 503 .*a fault"):
        watched.job.run()
    assert NAME in server.jobs and server.deleted == []


def test_a_cut_log_goes_on_where_it_was(server: FakeKubernetes, watched: Watched) -> None:
    server.cuts = [0, 3, 7, 1]

    def script(server: FakeKubernetes, job: Document) -> None:
        pod = server.add_pod(NAME)
        server.log(pod, *LINES)
        wait_until(lambda: not server.cuts)
        server.end_pod(pod)
        server.end_job(NAME, "Complete")

    server.on_create = script
    watched.job.run()
    assert watched.lines == list(LINES) and server.cuts == []


def test_a_restart_gives_the_log_of_the_new_pod_too(server: FakeKubernetes, watched: Watched) -> None:
    def script(server: FakeKubernetes, job: Document) -> None:
        first = server.add_pod(NAME, attempt=0)
        server.log(first, "first attempt")
        wait_until(lambda: watched.lines == ["first attempt"])
        server.end_pod(first, 137, "OOMKilled")
        second = server.add_pod(NAME, attempt=1)
        server.log(second, "second attempt")
        server.end_pod(second)
        server.end_job(NAME, "Complete")

    server.on_create = script
    watched.job.run()
    assert watched.lines == ["first attempt", "restart", "second attempt"]


def test_a_job_that_would_fail_again_is_not_restarted(
    server: FakeKubernetes, api: Kubernetes, manifest: Document
) -> None:
    """The cluster itself restarts it five times from the last checkpoint."""
    server.on_create = lambda server, job: server.log(server.add_pod(NAME), "step 2", "the loss is nan")
    with pytest.raises(TrainJobFailed, match=r"FailsAgain\): it was removed, since a restart would fail"):
        TrainJob(api, manifest, Lines(print, "the loss is nan"), print, poll_s=0.02).run()
    assert server.deleted == [NAME]


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
        wait_until(lambda: watched.lines == ["a line"])
        with server.changed:
            del server.jobs[NAME], server.pods[pod]
            server.changed.notify_all()

    server.on_create = script
    with pytest.raises(TrainJobFailed, match="is gone: it was deleted"):
        watched.job.run()


def test_pods_that_wait_say_why(server: FakeKubernetes, watched: Watched) -> None:
    waiting = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes: insufficient nvidia.com/gpu"}

    def script(server: FakeKubernetes, job: Document) -> None:
        with server.changed:  # no poll sees one of them alone
            server.add_pod(NAME, 0, phase="Pending", conditions=[waiting])
            server.add_pod(NAME, 1, phase="Pending")
        wait_until(lambda: expected in watched.statuses)
        trains("at last")(server, job)

    expected = f"pods: 2 Pending; {NAME}-node-0-0-0 waits: 0/3 nodes: insufficient nvidia.com/gpu"
    server.on_create = script
    watched.job.run()
    assert watched.lines == ["at last"] and watched.statuses.count(expected) == 1


def test_a_job_that_holds_a_part_says_who_holds_the_rest(server: FakeKubernetes, watched: Watched) -> None:
    waiting = {"type": "PodScheduled", "status": "False", "message": "0/2 nodes: insufficient nvidia.com/gpu"}
    server.add_pod("flashslm-other", 0)

    def script(server: FakeKubernetes, job: Document) -> None:
        with server.changed:  # no poll sees one of them alone
            server.add_pod(NAME, 0, phase="Pending", conditions=[waiting])
            server.add_pod(NAME, 1)
        wait_until(lambda: expected in watched.statuses)
        trains()(server, job)

    expected = (
        f"pods: 1 Pending, 1 Running; {NAME}-node-0-0-0 waits: 0/2 nodes: insufficient nvidia.com/gpu; "
        "pods that run meanwhile: this job (1), flashslm-other (1)"
    )
    server.on_create = script
    watched.job.run()
    assert watched.statuses.count(expected) == 1


def test_with_a_queue_the_whole_job_waits(server: FakeKubernetes, api: Kubernetes) -> None:
    _, queued = template_of(PLATFORM.model_copy(update={"queue": "training"}))
    queued["metadata"]["name"] = NAME
    queued["spec"]["trainer"]["command"] = ["python"]
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "training"
    watched = Watched(api, queued)

    def script(server: FakeKubernetes, job: Document) -> None:
        job["spec"]["suspend"] = True  # as Kueue's webhook does
        wait_until(lambda: expected in watched.statuses)
        job["spec"]["suspend"] = False
        trains("at last")(server, job)

    expected = "the whole job waits in Kueue's queue 'training'"
    server.on_create = script
    watched.job.run()
    assert watched.statuses.count(expected) == 1 and watched.lines == ["at last"]


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


SCRIPT = """
import json, sys
from pathlib import Path
from flashslm.infra.process.interrupts import terminable
from flashslm.infra.kubernetes.train_job import TrainJob
from tests.unit.infra.kubernetes.fake_kubernetes import client_of
from tests.unit.infra.kubernetes.jobs import Lines
url, account, manifest = sys.argv[1:]
with terminable():
    TrainJob(client_of(url, Path(account)), json.loads(manifest), Lines(print), print, poll_s=0.05).run()
"""


@pytest.mark.parametrize("refusals", [0, 100])
def test_sigterm_deletes_the_job(
    server: FakeKubernetes, address: str, tmp_path: Path, manifest: Document, refusals: int
) -> None:
    """An API server that is away meanwhile changes nothing of the end."""
    server.fail("DELETE", 503, times=refusals)
    server.on_create = lambda server, job: server.log(server.add_pod(NAME), "training")
    command = [sys.executable, "-u", "-c", SCRIPT, address, str(tmp_path / "account"), json.dumps(manifest)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    killer = threading.Timer(300, process.kill)
    killer.start()
    for line in process.stdout:
        if line == "training\n":
            process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    killer.cancel()
    assert (server.created, server.deleted) == ([NAME], [] if refusals else [NAME])
