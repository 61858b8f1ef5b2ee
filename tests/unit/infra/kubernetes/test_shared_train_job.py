"""Two runs of the same work and their one TrainJob: which of them changes, follows and removes it."""

import copy
from typing import Any

import pytest

from flashslm.infra.kubernetes.client import Kubernetes
from flashslm.infra.process.interrupts import Terminated
from tests.unit.infra.kubernetes.fake_kubernetes import FakeKubernetes
from tests.unit.infra.kubernetes.jobs import NAME, Document, Watched, trains


@pytest.fixture
def other(server: FakeKubernetes, api: Kubernetes, manifest: Document) -> Document:
    """The job of run `first`, which the server has: four processes on each node."""
    four = copy.deepcopy(manifest)
    four["spec"]["trainer"]["numProcPerNode"] = 4
    job = copy.deepcopy(Watched(api, four, "first").job.manifest)
    job["metadata"]["uid"] = "of-first"
    server.jobs[NAME] = job
    return job


def test_a_job_that_another_run_waits_for_is_followed_as_it_is(
    server: FakeKubernetes, api: Kubernetes, manifest: Document, other: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = Watched(api, manifest, "second")
    real = api.pods

    def pods(selector: str) -> list[Document]:
        monkeypatch.setattr(api, "pods", real)
        trains("step 1")(server, other)  # now that the second run has looked at the job
        return real(selector)

    monkeypatch.setattr(api, "pods", pods)
    second.job.run()
    assert second.lines == ["step 1"] and server.created == []
    assert second.statuses[0] == (
        f"TrainJob {NAME} of run first does the same work with numProcPerNode 4 instead of 8, and a step waits for "
        "it: this attempt adopts it as it is. To train as this run asks, cancel the other run or delete the job: the "
        "next attempt creates it again and resumes from the last checkpoint"
    )


def test_other_resources_are_another_template_too(
    server: FakeKubernetes, api: Kubernetes, manifest: Document, other: Document
) -> None:
    manifest["spec"]["trainer"]["numProcPerNode"] = 4
    manifest["spec"]["trainer"]["resourcesPerNode"]["limits"]["memory"] = "1Ti"
    second = Watched(api, manifest, "second")
    second.cancel_at = "step 1"
    server.log(server.add_pod(NAME), "step 1")
    with pytest.raises(Terminated):
        second.job.run()
    assert "does the same work with other resources or settings" in second.statuses[0]


def test_a_job_that_no_step_waits_for_is_replaced_where_its_template_is_another(
    server: FakeKubernetes, api: Kubernetes, manifest: Document, other: Document
) -> None:
    """A run that was lost has left it, and the recipe was submitted again for more GPUs."""
    server.on_create = trains("on eight")
    second = Watched(api, manifest, "second", is_watched=False)
    second.job.run()
    assert (second.lines, server.created) == (["on eight"], [NAME])
    assert second.statuses[:2] == [f"TrainJob {NAME} of an earlier attempt is removed", f"TrainJob {NAME} created"]


def test_the_same_template_is_adopted_whoever_waits_for_it(
    server: FakeKubernetes, api: Kubernetes, manifest: Document
) -> None:
    server.jobs[NAME] = copy.deepcopy(Watched(api, manifest, "first").job.manifest)
    trains("step 1")(server, manifest)
    second = Watched(api, manifest, "second", is_watched=False)
    second.job.run()
    assert (second.lines, server.created) == (["step 1"], [])
    assert second.statuses[0] == f"TrainJob {NAME} is there: this attempt adopts it"


@pytest.mark.parametrize(("run", "deleted"), [("first", [NAME]), ("second", [])])
def test_a_cancelled_run_removes_its_own_job_only(
    server: FakeKubernetes, api: Kubernetes, manifest: Document, other: Document, run: str, deleted: list[str]
) -> None:
    step = Watched(api, manifest, run)
    step.cancel_at = "step 1"
    server.log(server.add_pod(NAME), "step 1")
    with pytest.raises(Terminated):
        step.job.run()
    assert server.deleted == deleted


def test_the_job_that_another_run_made_in_place_of_a_failed_one_is_not_removed(
    server: FakeKubernetes, api: Kubernetes, manifest: Document, other: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both runs read the failed job; the first one has replaced it when the second one deletes it."""
    server.end_job(NAME, "Failed")
    real = api.delete

    def late(*arguments: Any) -> None:
        monkeypatch.setattr(api, "delete", real)
        with server.changed:
            server.jobs[NAME] = other | {"metadata": other["metadata"] | {"uid": "again"}, "status": {}}
        trains("of the first run")(server, other)
        real(*arguments)

    monkeypatch.setattr(api, "delete", late)
    second = Watched(api, manifest, "second")
    second.job.run()
    assert (second.lines, server.created) == (["of the first run"], [])
