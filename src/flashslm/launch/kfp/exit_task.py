"""The exit task of a run on a cluster: it runs when all others have ended, after success, failure and cancellation.

On one machine `flashslm run` ends a run itself, so the task is not in the pipeline. On a cluster the compiled pipeline
becomes the body of an exit handler, in the form that the SDK gives to `dsl.ExitHandler`.
"""

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from flashslm.config import StepResources
from flashslm.launch.compiling import PACKAGE

STEP = "end_run"
BODY, TASK = "exit-handler-1", "end-run"
AFTER_ALL = "ALL_UPSTREAM_TASKS_COMPLETED"
RESOURCES = StepResources(cpu="500m", memory="1Gi", timeout_s=3600)


def add_exit_task(spec: dict[str, Any], root: Path) -> None:
    """Make the pipeline of a specification the body of an exit handler whose task is components/end_run."""
    compiled = _component(root)
    components, executors = spec["components"], spec["deploymentSpec"]["executors"]
    components |= compiled["components"]
    executors |= compiled["deploymentSpec"]["executors"]
    pipeline = spec["root"]
    declared = pipeline.get("inputDefinitions", {}).get("parameters", {})
    components[f"comp-{BODY}"] = pipeline
    body: dict[str, Any] = {"componentRef": {"name": f"comp-{BODY}"}, "taskInfo": {"name": "Pipeline"}}
    if declared:
        body["inputs"] = {"parameters": {name: {"componentInputParameter": name} for name in declared}}
    end = {
        "cachingOptions": {},
        "componentRef": {"name": f"comp-{TASK}"},
        "dependentTasks": [BODY],
        "inputs": {"parameters": {"status": {"taskFinalStatus": {"producerTask": BODY}}}},
        "taskInfo": {"name": "End the run"},
        "triggerPolicy": {"strategy": AFTER_ALL},
    }
    spec["root"] = {"dag": {"tasks": {BODY: body, TASK: end}}}
    if declared:
        spec["root"]["inputDefinitions"] = {"parameters": {name: dict(value) for name, value in declared.items()}}


def is_exit_task(task: dict[str, Any]) -> bool:
    """Whether a task of a specification is one."""
    return bool(task.get("triggerPolicy", {}).get("strategy") == AFTER_ALL)


def _component(root: Path) -> dict[str, Any]:
    from kfp.compiler import Compiler

    if not (root / "components" / STEP).is_dir():  # pipelines of one's own, beside this project's
        root = PACKAGE.parents[1]
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    component = importlib.import_module(f"components.{STEP}.component").end_run
    with tempfile.TemporaryDirectory(prefix="flashslm-compile-") as directory:
        file = Path(directory) / "component.yaml"
        Compiler().compile(component, str(file))
        return dict(next(yaml.safe_load_all(file.read_text(encoding="utf-8"))))
