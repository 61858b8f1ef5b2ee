"""A Kubeflow TrainJob (Trainer v2 API) from a step: created or adopted, followed to its end, removed on cancel."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Protocol

from flashslm.config import digest
from flashslm.infra.kubernetes.client import Kubernetes, KubernetesError
from flashslm.infra.process.interrupts import Terminated

VARIABLE = "FLASHSLM_TRAIN_JOB"  # the job's template, from the cluster pass; without it a step trains in its own pod
API_VERSION, PLURAL = "trainer.kubeflow.org/v1alpha1", "trainjobs"
JOB_SET_LABEL = "jobset.sigs.k8s.io/jobset-name"
REPLICATED_JOB_LABEL = "jobset.sigs.k8s.io/replicatedjob-name"
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
RUN, TEMPLATE = "flashslm.dev/kfp-run", "flashslm.dev/template"  # annotations: which run made the job, and as what
NODE = "node"  # the replicated job and the container that Trainer's torch runtimes train in
_NOT_RESTARTED = {"reason": "FailsAgain", "message": "it was removed, since a restart would fail in the same way"}
_GONE_S = 900.0
_LAST_LINES = 20
_CLOCKS_S = 300  # by which a node's clock may differ from this pod's
_log = logging.getLogger(__name__)

KubernetesObject = dict[str, Any]


class TrainJobFailed(RuntimeError):
    """The job failed or is gone; the message has the reason of the pod that failed first."""


class TrainJobGone(TrainJobFailed):
    """The job was deleted while it was followed."""


def template_from_environment() -> KubernetesObject | None:
    """The TrainJob to make, but for its name and command; None where the step's own pod does the work."""
    text = os.environ.get(VARIABLE, "")
    return dict(json.loads(text)) if text else None


def world_size(template: KubernetesObject) -> int:
    """Processes of all nodes."""
    trainer = template["spec"]["trainer"]
    return int(trainer["numNodes"] * trainer["numProcPerNode"])


class Listener(Protocol):
    """What hears the log of rank 0's node."""

    def line(self, text: str) -> None: ...

    def restarted(self) -> None:
        """The lines that follow are another pod's."""

    def fails_again(self) -> bool:
        """Whether the lines say that a restart of the job would fail in the same way."""


class TrainJob:
    """One job by its name. `output` gets the log of rank 0's node, `on_status` one line when something changes.

    `run_id` is the KFP run of this step. Another run may do the same work and have a job of this name with other nodes,
    processes or resources; `is_watched` says whether a step waits for it.
    """

    def __init__(
        self,
        api: Kubernetes,
        manifest: KubernetesObject,
        output: Listener,
        on_status: Callable[[str], None],
        run_id: str = "",
        is_watched: bool = True,
        poll_s: float = 10.0,
    ):
        self.api, self.manifest, self.poll_s = api, _annotated(manifest, run_id), poll_s
        self._run_id, self._is_watched = run_id, is_watched
        self._output, self._on_status = output, on_status
        self.name = str(manifest["metadata"]["name"])
        self._status = ""
        self._seen: dict[str, str] = {}  # pod -> time stamp of its last line

    def run(self) -> None:
        """Start or adopt the job and follow it. It is removed when it is complete, and when this step is cancelled
        unless another run made it; a failed one stays to be looked at until the next attempt. Raises TrainJobFailed.
        """
        try:
            self._start()
            complete = self._follow()
        except (Terminated, KeyboardInterrupt):
            self._leave()
            raise
        self._delete(complete)

    def _leave(self) -> None:
        """Nothing here replaces the end that was asked for."""
        try:
            found = self._read()
            if found and _run_of(found) == self._run_id:
                self._delete(found)
            elif found:
                _log.info("TrainJob %s stays: run %s made it and may wait for it", self.name, _run_of(found))
        except KubernetesError as error:
            _log.warning("TrainJob %s was not removed: %s; its pods end when they miss this step", self.name, error)

    def _start(self) -> None:
        """Adopt a job that lives or is complete; replace one that failed, and one with another template that no step
        waits for; create one where there is none."""
        while True:
            found = self._read()
            if found and (adopted := self._adopted(found)):
                self._report(adopted)
                return
            if found:
                self._report(f"TrainJob {self.name} of an earlier attempt is removed")
                self._delete(found)
                self._wait_until_gone(found)
            try:
                self.api.create(API_VERSION, PLURAL, self.manifest)
                self._report(f"TrainJob {self.name} created")
                return
            except KubernetesError as error:
                if error.status != 409:  # else it is there after all: an answer was lost, or another process made it
                    raise

    def _adopted(self, found: KubernetesObject) -> str:
        """What adopting that job means; "" where it has to be replaced."""
        if _ended(found, "Failed") or "deletionTimestamp" in found["metadata"]:
            return ""
        others = _differences(found, self.manifest)
        if not others or _ended(found, "Complete"):
            return f"TrainJob {self.name} is there: this attempt adopts it"
        if not self._is_watched:
            return ""
        return (
            f"TrainJob {self.name} of run {_run_of(found)} does the same work with {others}, and a step waits for it: "
            "this attempt adopts it as it is. To train as this run asks, cancel the other run or delete the job: the "
            "next attempt creates it again and resumes from the last checkpoint"
        )

    def _follow(self) -> KubernetesObject:
        """The job when it is complete."""
        while True:
            job = self._read()
            if job is None:
                raise TrainJobGone(f"TrainJob {self.name} is gone: it was deleted; a retry creates it again")
            pods = self._pods()
            ended = _ended(job, "Complete") or _ended(job, "Failed")
            for pod in _started(pods, index="0"):
                self._stream(pod)
            if ended and ended["type"] == "Complete":
                return job
            if ended or self._output.fails_again():
                failure = self._failure(ended or _NOT_RESTARTED, pods)
                if not ended:
                    self._delete(job)
                raise TrainJobFailed(failure)
            self._report(self._describe(job, pods))
            time.sleep(self.poll_s)

    def _stream(self, pod: KubernetesObject) -> None:
        """Hand on the pod's lines that are new, for as long as there are some. Lines carry their time, so that a
        stream that was cut continues behind the last whole line."""
        name = pod["metadata"]["name"]
        if self._seen and name not in self._seen:
            self._output.restarted()
        since = {"since_seconds": _age_s(seen) + _CLOCKS_S} if (seen := self._seen.get(name)) else {}
        silence_s = max(self.poll_s, 1.0)
        try:
            for line in self.api.log_lines(name, silence_s, container=NODE, timestamps=True, **since):
                stamp, _, text = line.partition(" ")
                if (at := _sortable(stamp)) > self._seen.get(name, ""):
                    self._seen[name] = at
                    self._output.line(text)
        except KubernetesError as error:
            if error.status not in (400, 404, 500, 502, 503, 504):  # not started yet, gone, or the node is away
                raise

    def _failure(self, condition: KubernetesObject, pods: list[KubernetesObject]) -> str:
        """The job's own reason, and for the pod that failed first its reason, exit code and last lines."""
        text = f"TrainJob {self.name} failed ({condition.get('reason', '')}): {condition.get('message', '')}"
        failures = sorted(failure for pod in pods for failure in _terminations(pod))
        if not failures:
            return text
        _, name, reason = failures[0]
        try:
            lines = list(self.api.log_lines(name, 30.0, container=NODE, tail_lines=_LAST_LINES))
        except KubernetesError:
            lines = []
        listed = "".join(f"\n  {line}" for line in lines)
        return f"{text}\npod {name}: {reason}" + (f"; its last lines:{listed}" if lines else "")

    def _pods(self) -> list[KubernetesObject]:
        return self.api.pods(f"{JOB_SET_LABEL}={self.name},{REPLICATED_JOB_LABEL}={NODE}")

    def _describe(self, job: KubernetesObject, pods: list[KubernetesObject]) -> str:
        """How far the job is: in its queue, or its pods by phase and, where one waits, for what."""
        if job["spec"].get("suspend"):
            queue = job["metadata"].get("labels", {}).get(QUEUE_LABEL, "")
            return f"the whole job waits in Kueue's queue '{queue}'" if queue else "the job is suspended"
        phases = [_phase(pod) for pod in pods]
        text = ", ".join(f"{phases.count(phase)} {phase}" for phase in sorted(set(phases))) or "no pods yet"
        waiting = [reason for pod in pods if (reason := _unscheduled(pod))]
        return f"pods: {text}" + (f"; {waiting[0]}{self._holders()}" if waiting else "")

    def _holders(self) -> str:
        """Which TrainJobs of the namespace hold nodes meanwhile; two that hold a part each wait for each other."""
        running = [pod for pod in self.api.pods(f"{REPLICATED_JOB_LABEL}={NODE}") if _phase(pod) == "Running"]
        names = [str(pod["metadata"]["labels"].get(JOB_SET_LABEL)) for pod in running]
        held = [f"{'this job' if name == self.name else name} ({names.count(name)})" for name in sorted(set(names))]
        return f"; pods that run meanwhile: {', '.join(held)}" if held else ""

    def _read(self) -> KubernetesObject | None:
        return self.api.get(API_VERSION, PLURAL, self.name)

    def _delete(self, job: KubernetesObject) -> None:
        """That job, not one that another step has created in its place since it was read."""
        try:
            self.api.delete(API_VERSION, PLURAL, self.name, _uid(job))
        except KubernetesError as error:
            if error.status != 409:
                raise

    def _wait_until_gone(self, job: KubernetesObject) -> None:
        give_up_s = time.monotonic() + _GONE_S
        while (found := self._read()) is not None and _uid(found) == _uid(job):
            if time.monotonic() > give_up_s:
                raise TrainJobFailed(f"TrainJob {self.name} was deleted {_GONE_S:.0f} s ago and is still there")
            time.sleep(self.poll_s)

    def _report(self, status: str) -> None:
        if status and status != self._status:
            self._status = status
            self._on_status(status)


def _annotated(manifest: KubernetesObject, run_id: str) -> KubernetesObject:
    """A copy that says which run asks for the job, and what it asks: servers write some values in another form."""
    metadata = manifest["metadata"]
    own = {RUN: run_id, TEMPLATE: digest([metadata.get("labels", {}), manifest["spec"]])[:16]}
    return manifest | {"metadata": metadata | {"annotations": metadata.get("annotations", {}) | own}}


def _annotation(job: KubernetesObject, name: str) -> str:
    return str((job["metadata"].get("annotations") or {}).get(name, ""))


def _run_of(job: KubernetesObject) -> str:
    return _annotation(job, RUN)


def _uid(job: KubernetesObject) -> str:
    return str(job["metadata"].get("uid", ""))


def _differences(found: KubernetesObject, wanted: KubernetesObject) -> str:
    """What the found job's template has in place of the wanted one's; "" if they are the same."""
    if _annotation(found, TEMPLATE) == _annotation(wanted, TEMPLATE):
        return ""
    theirs, ours = (job["spec"].get("trainer", {}) for job in (found, wanted))
    fields = [field for field in ("numNodes", "numProcPerNode", "image") if theirs.get(field) != ours.get(field)]
    named = [f"{field} {theirs.get(field)} instead of {ours.get(field)}" for field in fields]
    return ", ".join(named) or "other resources or settings"


def _ended(job: KubernetesObject, kind: str) -> KubernetesObject | None:
    """The condition "Complete" or "Failed", where it holds."""
    conditions = job.get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == kind and c["status"] == "True"), None)


def _started(pods: list[KubernetesObject], index: str) -> list[KubernetesObject]:
    """Pods of that index whose container has or had a process, oldest first; a restart makes another pod."""
    mine = [pod for pod in pods if pod["metadata"]["labels"].get(INDEX_LABEL) == index]
    started = [pod for pod in mine if pod.get("status", {}).get("phase") in ("Running", "Succeeded", "Failed")]
    return sorted(started, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))


def _terminations(pod: KubernetesObject) -> Iterator[tuple[str, str, str]]:
    """(time, pod, reason) of every container that ended badly; of the pod itself where none did (an eviction)."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    found = False
    for container in status.get("containerStatuses", []):
        ended = container.get("state", {}).get("terminated")
        if ended and ended["exitCode"]:
            found = True
            reason = f"{ended.get('reason', 'Error')}, exit code {ended['exitCode']}"
            yield ended.get("finishedAt") or "~", name, f"{reason} {ended.get('message', '')}".strip()
    if not found and status.get("phase") == "Failed":
        yield "~", name, f"{status.get('reason', 'Failed')} {status.get('message', '')}".strip()


def _phase(pod: KubernetesObject) -> str:
    return str(pod.get("status", {}).get("phase", "Pending"))


def _unscheduled(pod: KubernetesObject) -> str:
    """Why the pod has no node; "" where it has one."""
    for condition in pod.get("status", {}).get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"{pod['metadata']['name']} waits: {condition.get('message', '')}"
    return ""


def _age_s(stamp: str) -> int:
    """Of a log's line; the API takes no time from which on a log is wanted, but an age."""
    return max(0, int((datetime.now(UTC) - datetime.fromisoformat(f"{stamp[:19]}+00:00")).total_seconds()))


def _sortable(stamp: str) -> str:
    """An RFC 3339 time whose fraction has all nine digits: servers leave out zeros at its end."""
    whole, _, fraction = stamp.removesuffix("Z").partition(".")
    return f"{whole}.{fraction:0<9}"
