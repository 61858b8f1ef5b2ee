"""The state of a run's tasks, read from Argo's workflow or, where that is not served, from KFP's task details.

Argo names a node by its path, `WORKFLOW.root.for-loop-2.iteration-iterations(1:1).iteration-item.pretrain.executor`.
KFP 2.17 wraps every template in a Retry node, which adds `(0)`, `(1)`, ... to each part: one per attempt.
"""

import base64
import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from typing import Any

from flashslm.launch.kfp.definition import ITERATION

_ATTEMPT = re.compile(r"\(\d+\)$")
# Argo's phases and KFP's states in the words of StepRecord.
_STATES = {"Pending": "RUNNING", "Running": "RUNNING", "Succeeded": "SUCCESS", "Failed": "FAILURE", "Error": "FAILURE"}
_STATES |= {"Skipped": "SKIPPED", "Omitted": "SKIPPED"}
_STATES |= {"RUNNING": "RUNNING", "PENDING": "RUNNING", "SUCCEEDED": "SUCCESS", "FAILED": "FAILURE"}
_STATES |= {"CANCELING": "CANCELLED", "CANCELED": "CANCELLED", "SKIPPED": "SKIPPED"}
NOT_STARTED = "WAITING"


@dataclass(frozen=True)
class TaskNode:
    """What the back end knows of one task. `pod` is that of the newest attempt, `message` says why it failed."""

    state: str = NOT_STARTED
    cached: bool = False
    started_s: float = 0.0
    ended_s: float = 0.0
    attempts: int = 0
    message: str = ""
    pod: str = ""


class WorkflowNodes:
    """The nodes of Argo's workflow: complete, with messages and the names of pods."""

    def __init__(self, workflow: dict[str, Any]):
        self._name = str(workflow["metadata"]["name"])
        status = workflow.get("status", {})
        nodes = status.get("nodes") or _decompressed(status.get("compressedNodes", ""))
        self._nodes: dict[str, list[dict[str, Any]]] = {}
        for node in nodes.values():
            self._nodes.setdefault(_without_attempts(node["name"]), []).append(node)

    def find(self, path: tuple[str, ...]) -> TaskNode:
        """The task at a path of the definition (`DefinedTask.path`)."""
        name = _argo_name(self._name, path)
        outer = self._outer(name)
        executor, driver = self._outer(f"{name}.executor"), self._outer(f"{name}-driver")
        if outer is None or _STATES.get(outer["phase"]) == "SKIPPED":
            if driver and _STATES.get(driver["phase"]) == "FAILURE":
                outer = driver
            else:
                return TaskNode("SKIPPED" if outer else NOT_STARTED)
        pods = sorted(self._pods(f"{name}.executor"), key=lambda n: n.get("startedAt") or "")
        return TaskNode(
            state=_STATES.get(outer["phase"], NOT_STARTED),
            cached=outer["phase"] == "Succeeded" and executor is not None and executor["phase"] == "Skipped",
            started_s=_seconds(outer.get("startedAt")),
            ended_s=_seconds(outer.get("finishedAt")),
            attempts=len(pods),
            message=str(next((n["message"] for n in (*pods[::-1], outer) if n.get("message")), "")),
            pod=self._pod_name(pods[-1]) if pods else "",
        )

    def _outer(self, name: str) -> dict[str, Any] | None:
        """The Retry node of a name, which sums up its attempts, or the only node."""
        nodes = self._nodes.get(name, [])
        return next((n for n in nodes if n["type"] == "Retry"), nodes[0] if nodes else None)

    def _pods(self, name: str) -> Iterator[dict[str, Any]]:
        yield from (n for n in self._nodes.get(name, []) if n["type"] == "Pod")

    def _pod_name(self, node: dict[str, Any]) -> str:
        """Argo's names of pods, format v2: workflow, template, hash of the node's name."""
        return f"{self._name}-{node['templateName']}-{node['id'].rsplit('-', 1)[-1]}"


class DetailNodes:
    """KFP's task details: identifiers without names, so a task is found by the hash of its children's names.

    They stop when Argo compresses the workflow's status (above 1 MiB), and they hold neither messages nor pods.
    """

    def __init__(self, details: list[Any]):
        children = {d: [c.pod_name for c in d.child_tasks or [] if c.pod_name] for d in map(_Detail, details)}
        self._parent = {child: detail for detail, names in children.items() for child in names}
        self._workflow = next((c.rsplit("-", 1)[0] for names in children.values() for c in names), "")

    def find(self, path: tuple[str, ...]) -> TaskNode:
        """The task at a path of the definition (`DefinedTask.path`)."""
        for wrapped, start in product((True, False), (f"{self._workflow}", f"{self._workflow}(0)")):
            name = _argo_name(start, path, "(0)" if wrapped else "")
            found = self._parent.get(self._identity(f"{name}(0)")) or self._parent.get(
                self._identity(f"{name}(0).executor" if wrapped else f"{name}.executor")
            )
            if found:
                return self._task(found, f"{name}(0)" if wrapped else name)
        return TaskNode()

    def _task(self, found: "_Detail", name: str) -> TaskNode:
        executor = self._parent.get(self._identity(f"{name}.executor(0)"))
        attempts = len(executor.child_tasks or []) if executor else 0
        state = _STATES.get(found.state or "", NOT_STARTED)
        started_s, ended_s = _seconds(found.start_time), _seconds(found.end_time)
        error = found.error.message if found.error and found.error.message else ""
        return TaskNode(state, state == "SUCCESS" and not attempts, started_s, ended_s, attempts, error)

    def _identity(self, name: str) -> str:
        """Argo's NodeID: the workflow's name and the 32-bit FNV-1a hash of the node's name."""
        value = 0x811C9DC5
        for byte in name.encode():
            value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
        return f"{self._workflow}-{value}"


class _Detail:
    """A task detail that can be a key: the generated models compare by value and have no hash."""

    def __init__(self, model: Any):
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _argo_name(workflow: str, path: tuple[str, ...], attempt: str = "") -> str:
    parts = [f"{workflow}", f"root{attempt}"]
    for part, following in zip(path, (*path[1:], ""), strict=True):
        if ITERATION.fullmatch(part):
            parts += [f"iteration-iterations({part}:{part}){attempt}", f"iteration-item{attempt}"]
        else:
            parts.append(part + (attempt if following else ""))
    return ".".join(parts)


def _without_attempts(name: str) -> str:
    return ".".join(_ATTEMPT.sub("", part) for part in name.split("."))


def _decompressed(nodes: str) -> dict[str, Any]:
    return dict(json.loads(gzip.decompress(base64.b64decode(nodes)))) if nodes else {}


def _seconds(when: datetime | str | None) -> float:
    """POSIX seconds; KFP writes the years 1 and 1970 for what has not happened."""
    if isinstance(when, str):
        when = datetime.fromisoformat(when)
    if when is None or when.year <= 1970:
        return 0.0
    return when.replace(tzinfo=when.tzinfo or UTC).timestamp()
