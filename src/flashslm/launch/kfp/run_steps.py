"""The steps of a run on a cluster as the local terminal shows them: one per task of the compiled definition."""

import re
from typing import Any

from flashslm.config import GPU_STEPS
from flashslm.launch.kfp.client import KfpClient
from flashslm.launch.kfp.definition import DefinedTask, defined_tasks
from flashslm.launch.kfp.nodes import DetailNodes, TaskNode, WorkflowNodes
from flashslm.launch.progress import StepRecord

NOT_STARTED = ("WAITING", "SKIPPED")
ENDED = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}
_OUT_OF_MEMORY = re.compile(r"OOMKilled( \(exit code \d+\))?")
_RUN_DEADLINE = "exceeded workflow deadline"
_POD_DEADLINE = "active on the node longer than the specified deadline"


def is_cancelled(run: Any) -> bool:
    """Whether a V2beta1Run was cancelled. KFP 2.17 ends such a run as FAILED; its history has the request."""
    states = {run.state, *(entry.state for entry in run.state_history or [])}
    return bool(states & {"CANCELING", "CANCELED"})


def state_of(run: Any) -> str:
    """The run's state, CANCELED for one that was cancelled and has ended."""
    return "CANCELED" if run.state in ENDED - {"SUCCEEDED"} and is_cancelled(run) else str(run.state or "PENDING")


def steps_of(client: KfpClient, run: Any) -> list[StepRecord]:
    """Every task of the pipeline of a V2beta1Run, those that wait too, in the definition's order.

    The exit task is shown only where it failed: the local run has none. A step that several branches end with is one
    row, of the branch that was taken.
    """
    arguments = (run.runtime_config.parameters if run.runtime_config else None) or {}
    workflow = client.workflow(run.run_id)
    details = (run.run_details and run.run_details.task_details) or []
    nodes = WorkflowNodes(workflow) if workflow else DetailNodes(details)
    found = [(task, nodes.find(task.path)) for task in defined_tasks(client.specification(run), arguments)]
    shown = [(task, node) for task, node in found if not task.is_exit_task or node.state == "FAILURE"]
    return _one_of_each([_record(run, task, node) for task, node in shown])


def _one_of_each(steps: list[StepRecord]) -> list[StepRecord]:
    """Of tasks with one label those that were started; the first while none was."""
    started = {step.label for step in steps if step.state not in NOT_STARTED}
    first = {step.label: step for step in reversed(steps)}
    return [s for s in steps if s.state not in NOT_STARTED or (s.label not in started and s is first[s.label])]


def cached_tasks(steps: list[StepRecord]) -> int:
    """How many steps of the pipeline came from the cache, the iterations of a loop together counted once."""
    ran = {step.name for step in steps if not step.cached and step.state != "SKIPPED"}
    return len({step.name for step in steps if step.cached} - ran)


def _record(run: Any, task: DefinedTask, node: TaskNode) -> StepRecord:
    state = node.state
    if state in ("FAILURE", "RUNNING") and run.state in ENDED and is_cancelled(run):
        state = "CANCELLED"
    elif state == "WAITING" and run.state in ENDED:
        state = "SKIPPED"
    return StepRecord(
        name=task.step,
        label=task.label,
        state=state,
        cached=node.cached,
        started_s=node.started_s,
        duration_s=max(0.0, node.ended_s - node.started_s) if node.ended_s else 0.0,
        attempt=node.attempts,
        summary=_reason(task, node.message) if state == "FAILURE" else "",
        pod=node.pod,
    )


def _reason(task: DefinedTask, message: str) -> str:
    """Why a task failed, and the setting that changes it."""
    resources = "gpu_steps" if task.step in GPU_STEPS else "cpu_steps"
    if memory := _OUT_OF_MEMORY.search(message):
        limit = f" with {task.memory_limit}" if task.memory_limit else ""
        return f"{memory[0]}{limit}: raise platform.{resources}.memory"
    if _RUN_DEADLINE in message:
        return "the run's deadline passed: raise platform.deadline_s"
    if _POD_DEADLINE in message:
        return f"the step's deadline passed: raise platform.{resources}.timeout_s"
    return message.removeprefix("main: ")
